-- After segment_columns.sql.
FROM tallyline.segment
WHERE node = $1 AND name = $2
