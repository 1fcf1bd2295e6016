UPDATE segment SET completed_at_ms = ?3 WHERE completed_at_ms NOT BETWEEN ?1 AND ?2
