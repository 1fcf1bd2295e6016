SELECT id FROM tallyline.event_id WHERE id = ANY ($1) ORDER BY id FOR UPDATE
