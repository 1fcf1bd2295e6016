-- After segment_columns.sql.
FROM tallyline.segment
WHERE node = $1 AND state <> 'applied'
ORDER BY key
