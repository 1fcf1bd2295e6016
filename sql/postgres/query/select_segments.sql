-- After segment_columns.sql.
FROM tallyline.segment
WHERE node = $1
ORDER BY key
