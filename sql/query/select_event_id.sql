SELECT payload, segment, offset FROM event_id WHERE id = ?1
