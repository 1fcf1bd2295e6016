DELETE FROM id_block WHERE prefix = ?1 AND width = ?2 AND block = ?3
