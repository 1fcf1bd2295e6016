-- After segment_columns.sql.
WHERE name = ?1
