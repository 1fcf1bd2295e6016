SELECT segments, native, lines, events, duplicates, rejected, corrupt_lines
FROM tallyline.applied_sum
WHERE node = $1
