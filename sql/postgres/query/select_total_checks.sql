-- The sums over all users of a node, from their rows.
SELECT count(*), coalesce(sum(events), 0)::bigint, coalesce(sum(revenue_micros::numeric), 0)::text
FROM tallyline.user_total
WHERE node = $1
