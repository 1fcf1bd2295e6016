SELECT users, events, revenue_micros::text, updated_at_ms FROM tallyline.overall WHERE node = $1
