-- After segment_columns.sql.
WHERE key IN (SELECT key FROM segment WHERE key > 0 ORDER BY key DESC LIMIT ?1)
   OR key IN (SELECT key FROM segment WHERE key < 0 ORDER BY key LIMIT ?1)
ORDER BY state = 'active' DESC, created_at_ms DESC, key DESC
LIMIT ?1
