INSERT INTO user_check (user_id, correction_micros, correction_events) VALUES (?1, ?2, ?3)
ON CONFLICT (user_id) DO UPDATE
SET correction_micros = excluded.correction_micros, correction_events = correction_events + excluded.correction_events
