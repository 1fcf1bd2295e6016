UPDATE segment SET ids_expired = ids_expired + ?2 WHERE key = ?1
