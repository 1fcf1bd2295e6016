-- Changes the state of a segment, only if applied_bytes is unchanged since it was read.
UPDATE segment
SET state = ?3, file_name = ?4, reason = ?5, corrupt_bytes = ?6, corrupt_lines = ?7,
    completed_at_ms = iif(?3 = 'applied', ?8, NULL)
WHERE key = ?1 AND applied_bytes = ?2 AND state <> 'applied'
