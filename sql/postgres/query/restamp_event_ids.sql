UPDATE tallyline.event_id SET applied_at_s = $2 WHERE id = ANY ($1)
