-- After segment_columns.sql.
FROM tallyline.segment
WHERE node = $1 AND key > 0 AND state = 'applied'
ORDER BY key
LIMIT 1
