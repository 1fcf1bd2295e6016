-- Changes the state of a segment, only if applied_bytes is unchanged since it was read.
UPDATE tallyline.segment
SET state = $4, file_name = $5, reason = $6, corrupt_bytes = $7, corrupt_lines = $8,
    completed_at_ms = CASE WHEN $4 = 'applied' THEN $9 END
WHERE node = $1 AND key = $2 AND applied_bytes = $3 AND state <> 'applied'
