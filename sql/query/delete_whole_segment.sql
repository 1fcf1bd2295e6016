-- Only if it still is what was seen.
DELETE FROM segment
WHERE key = ?1 AND state = 'whole' AND applied_bytes = ?2 AND checksum = ?3
