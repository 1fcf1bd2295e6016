-- The program computes the number modulo 2^64.
SELECT coalesce(sum(events), 0)::text, coalesce(sum(revenue_micros::numeric), 0)::text
FROM tallyline.user_total
WHERE node = $1
