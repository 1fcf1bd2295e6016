-- Only if the row is unchanged since it was read.
DELETE FROM segment
WHERE key = ?1 AND state = 'applied' AND applied_bytes = ?2 AND checksum = ?3
