SELECT events, revenue_micros FROM user_total
