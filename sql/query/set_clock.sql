UPDATE clock SET seen_at_ms = ?1
