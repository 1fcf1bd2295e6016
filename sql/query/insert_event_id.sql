-- The row of parameters may be repeated.
INSERT INTO event_id (id, payload, offset, segment, applied_at_s)
VALUES (?3, ?4, ?5, ?1, ?2)
ON CONFLICT (id) DO NOTHING
