-- Ours, for finding the numbers that are missing.
SELECT key FROM segment WHERE key > 0 ORDER BY key
