-- The program computes the sums, because net_check is modulo 2^64.
UPDATE pruned
SET number = ?1, segments = ?2, lines = ?3, events = ?4, duplicates = ?5, rejected = ?6, net_check = ?7,
    file_bytes = ?8, file_checksum = ?9, pruned_at_ms = ?10
