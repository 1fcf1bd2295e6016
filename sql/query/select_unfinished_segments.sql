-- After segment_columns.sql.
WHERE state <> 'applied' ORDER BY key
