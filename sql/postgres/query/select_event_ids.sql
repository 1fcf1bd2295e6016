SELECT id, payload, node, segment, "offset" FROM tallyline.event_id WHERE id = ANY ($1)
