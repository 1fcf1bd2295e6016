-- In a corrupt database a user can occur twice.
INSERT INTO user_check (user_id, database_micros, database_events) VALUES (?1, ?2, ?3)
ON CONFLICT (user_id) DO NOTHING
