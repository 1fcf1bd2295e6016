SELECT segment, offset FROM event_id
