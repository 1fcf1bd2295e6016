-- The first damages of the file: pages, records, constraints; one row that says ok if there is none.
PRAGMA quick_check(10)
