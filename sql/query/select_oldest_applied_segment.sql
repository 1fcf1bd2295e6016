-- After segment_columns.sql.
WHERE key > 0 AND state = 'applied' ORDER BY key LIMIT 1
