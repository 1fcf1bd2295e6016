-- The program computes the sums, because net_check is modulo 2^64.
INSERT INTO tallyline.pruned (node, number, segments, lines, events, duplicates, rejected, net_check, file_bytes,
                              file_checksum, pruned_at_ms)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (node) DO UPDATE
SET number = excluded.number, segments = excluded.segments, lines = excluded.lines, events = excluded.events,
    duplicates = excluded.duplicates, rejected = excluded.rejected, net_check = excluded.net_check,
    file_bytes = excluded.file_bytes, file_checksum = excluded.file_checksum, pruned_at_ms = excluded.pruned_at_ms
