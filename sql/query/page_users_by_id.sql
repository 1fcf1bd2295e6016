SELECT user_id, revenue_micros, events, updated_at_ms FROM user_total
WHERE user_id > ?1
ORDER BY user_id LIMIT ?2
