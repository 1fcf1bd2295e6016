SELECT name, applied_bytes, checksum FROM tallyline.segment
WHERE node = $1 AND key < 0 AND state = 'applied' AND events > id_events
