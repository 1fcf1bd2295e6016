-- The state of a segment apart from its progress; only if the progress is still what was seen.
UPDATE segment
SET state = ?3, file_name = ?4, reason = ?5, untrusted_bytes = ?6, untrusted_lines = ?7,
    whole_at_ms = iif(?3 = 'whole', ?8, NULL)
WHERE key = ?1 AND applied_bytes = ?2 AND state <> 'whole'
