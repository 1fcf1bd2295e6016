-- The imported files of the node with this label, and what is applied of them.
SELECT name, applied_bytes, checksum
FROM tallyline.segment
WHERE node = $1 AND label = $2 AND applied_bytes > 0
