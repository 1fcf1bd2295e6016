-- Users whose totals might overflow 64 bits.
SELECT user_id
FROM tallyline.user_total
WHERE node = $1 AND user_id = ANY ($2) AND revenue_micros NOT BETWEEN $3 AND $4
