-- Damage that SQLite finds in the file, at most ten rows; one row "ok" if there is none.
PRAGMA quick_check(10)
