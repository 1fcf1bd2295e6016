INSERT INTO user_total (user_id, revenue_micros, events, updated_at_ms) VALUES (?1, ?2, ?3, ?4)
