SELECT user_id, sum(revenue_micros)::text, sum(events)::bigint, max(updated_at_ms)
FROM tallyline.user_total
WHERE user_id >= $1 AND ($2::text IS NULL OR user_id < $2) AND ($3::text IS NULL OR user_id > $3)
GROUP BY user_id
ORDER BY user_id LIMIT $4
