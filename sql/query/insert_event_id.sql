INSERT INTO event_id (id, payload, segment, offset, applied_at_s)
VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (id) DO NOTHING
