-- From ?1 (inclusive) to ?2 (exclusive).
SELECT user_id, revenue_micros, events, updated_at_ms FROM user_total
WHERE user_id >= ?1 AND user_id < ?2
ORDER BY user_id LIMIT ?3
