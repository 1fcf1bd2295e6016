SELECT users, events, revenue_micros, updated_at_ms FROM overall
