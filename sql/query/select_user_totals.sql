SELECT user_id, revenue_micros, events FROM user_total ORDER BY user_id
