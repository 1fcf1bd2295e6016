-- COMMIT of a transaction that was aborted answers ROLLBACK and no error; the statement before it fails instead.
SELECT 1;
COMMIT
