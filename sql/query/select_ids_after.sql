SELECT id, segment, applied_at_s FROM event_id WHERE id > ?1 ORDER BY id LIMIT ?2
