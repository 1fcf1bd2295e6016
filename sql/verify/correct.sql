-- Changes nothing if the sum might overflow 64 bits (it must be from ?4 to ?5 before). The program then
-- computes it modulo 2^64.
INSERT INTO user_check (user_id, files_micros, files_events) VALUES (?1, ?2, ?3)
ON CONFLICT (user_id) DO UPDATE
SET files_micros = files_micros + excluded.files_micros,
    files_events = files_events + excluded.files_events
WHERE files_micros BETWEEN ?4 AND ?5
