SELECT revenue_micros FROM user_total WHERE user_id = ?1
