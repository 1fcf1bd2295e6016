DELETE FROM rejected_line WHERE segment = ?1
