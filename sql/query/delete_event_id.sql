DELETE FROM event_id WHERE id = ?1
