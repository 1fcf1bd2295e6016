SELECT user_id, micros::text, events, updated_at_ms
FROM (SELECT user_id, sum(revenue_micros) AS micros, sum(events)::bigint AS events,
             max(updated_at_ms) AS updated_at_ms
      FROM tallyline.user_total
      GROUP BY user_id) AS u
WHERE $1::text IS NULL OR (micros, user_id) > ($1::numeric, $2)
ORDER BY u.micros, u.user_id LIMIT $3
