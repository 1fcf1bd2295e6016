SELECT revenue_micros, events, updated_at_ms FROM user_total WHERE user_id = ?1
