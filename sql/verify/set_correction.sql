INSERT INTO user_check (user_id, files_micros, files_events) VALUES (?1, ?2, ?3)
ON CONFLICT (user_id) DO UPDATE
SET files_micros = excluded.files_micros, files_events = files_events + excluded.files_events
