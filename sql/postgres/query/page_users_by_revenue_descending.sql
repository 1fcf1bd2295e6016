-- Users of equal revenue are ordered by id ascending, as in the other order.
SELECT user_id, micros::text, events, updated_at_ms
FROM (SELECT user_id, sum(revenue_micros) AS micros, sum(events)::bigint AS events,
             max(updated_at_ms) AS updated_at_ms
      FROM tallyline.user_total
      GROUP BY user_id) AS u
WHERE $1::text IS NULL OR micros < $1::numeric OR (micros = $1::numeric AND user_id > $2)
ORDER BY u.micros DESC, u.user_id LIMIT $3
