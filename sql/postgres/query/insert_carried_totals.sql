INSERT INTO tallyline.user_total (user_id, node, revenue_micros, events, updated_at_ms)
SELECT t.user_id, $1, t.micros, t.events, $2
FROM unnest($3, $4, $5) AS t (user_id, micros, events)
