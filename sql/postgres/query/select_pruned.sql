SELECT number, segments, lines, events, duplicates, rejected, net_check, file_bytes, file_checksum
FROM tallyline.pruned
WHERE node = $1
