-- The table of `verify` in a temporary database: the total of each user in the database, and what is to be
-- added to the sum of its events in the files, because some of them are not counted. It is deleted when the
-- connection is closed.
CREATE TABLE user_check (
    user_id           TEXT    NOT NULL PRIMARY KEY,
    database_micros   INTEGER NOT NULL DEFAULT 0, -- user_total.revenue_micros
    database_events   INTEGER NOT NULL DEFAULT 0, -- user_total.events
    correction_micros INTEGER NOT NULL DEFAULT 0, -- modulo 2^64
    correction_events INTEGER NOT NULL DEFAULT 0  -- negative
) STRICT, WITHOUT ROWID;
