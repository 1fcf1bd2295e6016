-- After an upgrade, when the ids are counted for the first time.
UPDATE overall SET ids = ?1
