-- After segment_columns.sql.
ORDER BY key
