-- Native segments, to find missing numbers.
SELECT key FROM segment WHERE key > 0 ORDER BY key
