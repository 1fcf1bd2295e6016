-- Users of equal revenue are ordered by id ascending, as in the other order.
SELECT user_id, revenue_micros, events, updated_at_ms FROM user_total
WHERE revenue_micros < ?1 OR (revenue_micros = ?1 AND user_id > ?2)
ORDER BY revenue_micros DESC, user_id LIMIT ?3
