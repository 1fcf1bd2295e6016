-- 'tallylin' as a number: one node creates the tables while the others wait.
SELECT pg_advisory_xact_lock(8386658464824650094)
