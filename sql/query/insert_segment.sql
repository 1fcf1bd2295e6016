-- The first range of a segment. Changes nothing if the segment exists already.
INSERT INTO segment (key, name, tag, file_name, state, applied_bytes, checksum, created_at_ms, applied_at_ms, completed_at_ms, label)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, iif(?6 > 0, ?8, NULL), iif(?5 = 'applied', ?8, NULL), ?9)
ON CONFLICT DO NOTHING
