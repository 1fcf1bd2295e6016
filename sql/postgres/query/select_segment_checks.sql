-- The program computes the number modulo 2^64.
SELECT coalesce(sum(events), 0)::text, coalesce(sum(net_check::numeric), 0)::text
FROM tallyline.segment
WHERE node = $1
