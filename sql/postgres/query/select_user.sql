SELECT sum(revenue_micros)::text, sum(events)::bigint, max(updated_at_ms)
FROM tallyline.user_total
WHERE user_id = $1
HAVING count(*) > 0
