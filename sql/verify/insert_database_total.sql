-- The file may be corrupt: then a user can be there twice.
INSERT INTO user_check (user_id, database_micros, database_events) VALUES (?1, ?2, ?3)
ON CONFLICT (user_id) DO NOTHING
