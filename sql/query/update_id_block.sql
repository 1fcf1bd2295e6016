-- The newest time of applying counts; NULL where nothing was counted.
UPDATE id_block
SET numbers = ?4, applied_at_s = max(applied_at_s, coalesce(?5, applied_at_s))
WHERE prefix = ?1 AND width = ?2 AND block = ?3
