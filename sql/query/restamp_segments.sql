UPDATE segment SET whole_at_ms = ?3 WHERE whole_at_ms NOT BETWEEN ?1 AND ?2
