-- Of the users from ?1 (inclusive) to ?2 (exclusive).
SELECT user_id, revenue_micros, events, updated_at_ms FROM user_total
WHERE user_id >= ?1 AND user_id < ?2 AND (revenue_micros, user_id) > (?3, ?4)
ORDER BY revenue_micros, user_id LIMIT ?5
