-- Only if the row is unchanged since it was read.
DELETE FROM tallyline.segment
WHERE node = $1 AND key = $2 AND state = 'applied' AND applied_bytes = $3 AND checksum = $4
