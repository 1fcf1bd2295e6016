SELECT user_id, revenue_micros, events, updated_at_ms FROM user_total
WHERE (revenue_micros, user_id) > (?1, ?2)
ORDER BY revenue_micros, user_id LIMIT ?3
