INSERT INTO user_check (user_id, database_micros, database_events) VALUES (?1, ?2, ?3)
