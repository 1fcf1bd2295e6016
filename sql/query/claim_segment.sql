-- Compare-and-set: applied_bytes changes from ?2 to ?3, or nothing changes.
UPDATE segment
SET applied_bytes = ?3, checksum = ?4, file_name = ?5, state = ?6, applied_at_ms = ?7,
    completed_at_ms = iif(?6 = 'applied', ?7, NULL), reason = NULL, label = coalesce(?9, label)
WHERE key = ?1 AND applied_bytes = ?2 AND tag IS ?8 AND state IN ('active', 'sealed', 'missing')
