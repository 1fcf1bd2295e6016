-- The table of `verify` in a temporary database: the total of each user in the database, and the total
-- recounted from the files. It is deleted when the connection is closed.
CREATE TABLE user_check (
    user_id         TEXT    NOT NULL PRIMARY KEY,
    database_micros INTEGER NOT NULL DEFAULT 0, -- user_total.revenue_micros
    database_events INTEGER NOT NULL DEFAULT 0, -- user_total.events
    files_micros    INTEGER NOT NULL DEFAULT 0, -- recounted, modulo 2^64
    files_events    INTEGER NOT NULL DEFAULT 0  -- recounted
) STRICT, WITHOUT ROWID;
