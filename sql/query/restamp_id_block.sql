UPDATE id_block SET applied_at_s = ?4 WHERE prefix = ?1 AND width = ?2 AND block = ?3
