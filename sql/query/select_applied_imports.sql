-- The imported files that are fully applied.
SELECT name FROM segment WHERE key < 0 AND state = 'applied'
