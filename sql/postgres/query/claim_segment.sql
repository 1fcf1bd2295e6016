-- Before RETURNING and segment_columns.sql.
-- Compare-and-set: applied_bytes changes from $3 to $4, or nothing changes. Waits for another transaction
-- that has changed the row.
UPDATE tallyline.segment
SET applied_bytes = $4, checksum = $5, file_name = $6, state = $7, applied_at_ms = $8,
    completed_at_ms = CASE WHEN $7 = 'applied' THEN $8 END, reason = NULL, label = coalesce($10, label)
WHERE node = $1 AND name = $2 AND applied_bytes = $3 AND tag IS NOT DISTINCT FROM $9
  AND state IN ('active', 'sealed', 'missing')
