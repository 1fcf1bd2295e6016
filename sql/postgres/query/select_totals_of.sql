SELECT user_id, revenue_micros FROM tallyline.user_total WHERE node = $1 AND user_id = ANY ($2)
