-- Before RETURNING and segment_columns.sql.
-- The first range of a segment. Changes nothing if the segment exists already.
INSERT INTO tallyline.segment (node, key, name, tag, file_name, state, applied_bytes, checksum, created_at_ms,
                               applied_at_ms, completed_at_ms, label)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, CASE WHEN $7 > 0 THEN $9 END, CASE WHEN $6 = 'applied' THEN $9 END, $10)
ON CONFLICT DO NOTHING
