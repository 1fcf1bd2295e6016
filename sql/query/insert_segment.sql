-- The first range of a segment; nothing if the segment is there already.
INSERT INTO segment (key, name, file_name, state, applied_bytes, checksum, created_at_ms, applied_at_ms, whole_at_ms)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, iif(?5 > 0, ?7, NULL), iif(?4 = 'whole', ?7, NULL))
ON CONFLICT DO NOTHING
