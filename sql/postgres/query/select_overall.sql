SELECT count(*), coalesce(sum(events), 0)::bigint, coalesce(sum(micros), 0)::text, max(updated_at_ms)
FROM (SELECT sum(revenue_micros) AS micros, sum(events) AS events, max(updated_at_ms) AS updated_at_ms
      FROM tallyline.user_total
      GROUP BY user_id) AS u
