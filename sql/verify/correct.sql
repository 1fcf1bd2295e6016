-- Changes nothing if the sum might overflow 64 bits (it must be from ?4 to ?5 before). The program then
-- computes it modulo 2^64.
INSERT INTO user_check (user_id, correction_micros, correction_events) VALUES (?1, ?2, ?3)
ON CONFLICT (user_id) DO UPDATE
SET correction_micros = correction_micros + excluded.correction_micros,
    correction_events = correction_events + excluded.correction_events
WHERE correction_micros BETWEEN ?4 AND ?5
