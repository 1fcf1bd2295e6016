-- Of the users from ?1 (inclusive) to ?2 (exclusive). Users of equal revenue are ordered by id ascending, as
-- in the other order.
SELECT user_id, revenue_micros, events, updated_at_ms FROM user_total
WHERE user_id >= ?1 AND user_id < ?2 AND (revenue_micros < ?3 OR (revenue_micros = ?3 AND user_id > ?4))
ORDER BY revenue_micros DESC, user_id LIMIT ?5
