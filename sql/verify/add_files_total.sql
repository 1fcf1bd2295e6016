-- Changes nothing where the sum might leave 64 bits (it must be from ?4 to ?5 before): then it is
-- added up outside, where it wraps.
INSERT INTO user_check (user_id, files_micros, files_events) VALUES (?1, ?2, ?3)
ON CONFLICT (user_id) DO UPDATE
SET files_micros = files_micros + excluded.files_micros,
    files_events = files_events + excluded.files_events
WHERE files_micros BETWEEN ?4 AND ?5
