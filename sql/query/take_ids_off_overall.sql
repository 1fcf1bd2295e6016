-- In a database that is mixed from two copies there may be fewer than ?1.
UPDATE overall SET ids = max(ids - ?1, 0)
