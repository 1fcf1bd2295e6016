SELECT events, revenue_micros, updated_at_ms FROM user_total
