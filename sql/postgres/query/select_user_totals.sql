SELECT user_id, revenue_micros, events FROM tallyline.user_total WHERE node = $1 ORDER BY user_id
