-- Users of equal revenue are ordered by id ascending, as in the other order.
SELECT user_id, micros::text, events, updated_at_ms
FROM (SELECT user_id, sum(revenue_micros) AS micros, sum(events)::bigint AS events,
             max(updated_at_ms) AS updated_at_ms
      FROM tallyline.user_total
      WHERE user_id >= $1 AND ($2::text IS NULL OR user_id < $2)
      GROUP BY user_id) AS u
WHERE $3::text IS NULL OR micros < $3::numeric OR (micros = $3::numeric AND user_id > $4)
ORDER BY u.micros DESC, u.user_id LIMIT $5
