SELECT user_id, sum(revenue_micros)::text, sum(events)::bigint, max(updated_at_ms)
FROM tallyline.user_total
WHERE user_id = ANY ($1)
GROUP BY user_id
