-- From version 4 to 5: the number of ids. The program counts them.
ALTER TABLE overall ADD COLUMN ids INTEGER NOT NULL DEFAULT 0 CHECK (ids >= 0); -- number of ids in event_id and id_block; a database that is mixed from two copies has another number
PRAGMA user_version = 5;
