UPDATE segment SET ids_let_go = ids_let_go + ?2 WHERE key = ?1
