SELECT id, applied_at_s, node, segment FROM tallyline.event_id WHERE id > $1 ORDER BY id LIMIT $2
