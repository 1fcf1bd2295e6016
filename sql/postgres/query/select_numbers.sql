-- Native segments, to find missing numbers.
SELECT key FROM tallyline.segment WHERE node = $1 AND key > 0 ORDER BY key
