-- tallyline's database: exact totals per user, and how far each file of events has been applied.
--
-- The files of events are the source of truth; the database can be deleted and made again from them.
-- Events change totals, ids and rejected lines in one transaction together with segment.applied_bytes,
-- so the totals always correspond to the offsets in `segment`.
-- Amounts are whole micros, 10^-6 of a unit. Times in columns that end in _ms are milliseconds since
-- 1970 UTC. SQLite 3.40 and later can read the database.
-- The comment of a table stands inside its parentheses, because SQLite keeps the text from CREATE on,
-- and `.schema` and Datasette show it.

PRAGMA application_id = 0x74616C79; -- 'taly'
PRAGMA user_version = 6;

CREATE TABLE directory (
    -- One row: the data directory to which this database belongs.
    one             INTEGER PRIMARY KEY CHECK (one = 1),            -- there is only one row
    uuid            TEXT,                                           -- as in directory.json; NULL until a processor has opened the database
    last_import_key INTEGER NOT NULL DEFAULT 0 CHECK (last_import_key <= 0) -- the lowest segment.key assigned to an imported file; no key is assigned twice
) STRICT;
INSERT INTO directory (one) VALUES (1);

CREATE TABLE user_total (
    -- One row for every user with a counted event. For people: the view user_revenue.
    user_id        TEXT    NOT NULL PRIMARY KEY CHECK (user_id <> ''), -- userId of the events
    revenue_micros INTEGER NOT NULL,                                   -- added minus subtracted, exact
    events         INTEGER NOT NULL CHECK (events > 0),                -- events counted
    updated_at_ms  INTEGER NOT NULL                                    -- when an event was last applied
) STRICT, WITHOUT ROWID;

CREATE TABLE overall (
    -- One row: the sums over all rows of user_total, so that no reader has to add them up, and the number
    -- of ids. Changed in the same transaction as the rows.
    one            INTEGER PRIMARY KEY CHECK (one = 1),                 -- there is only one row
    users          INTEGER NOT NULL DEFAULT 0 CHECK (users >= 0),       -- number of rows
    events         INTEGER NOT NULL DEFAULT 0 CHECK (events >= users),  -- sum of events
    revenue_micros TEXT    NOT NULL DEFAULT '0' CHECK (revenue_micros <> ''), -- sum of revenue_micros, exact; text, because it may exceed 64 bits
    updated_at_ms  INTEGER,                                             -- when an event was last applied; NULL if none yet
    ids            INTEGER NOT NULL DEFAULT 0 CHECK (ids >= 0)          -- number of ids in event_id and id_block; a database that is mixed from two copies has another number
) STRICT;
INSERT INTO overall (one) VALUES (1);

CREATE TABLE segment (
    -- One row for every segment that the processor has read and that is not pruned. For people: the
    -- view segment_progress.
    key             INTEGER PRIMARY KEY,                       -- the number of a native segment; -1, -2, ... for imported files
    name            TEXT    NOT NULL UNIQUE CHECK (name <> ''), -- identity: events-000042, or the file name of an imported file
    number          INTEGER GENERATED ALWAYS AS (iif(key > 0, key, NULL)) VIRTUAL, -- the number of a native segment; NULL for an imported file
    tag             TEXT,                                      -- distinguishes native segments of the same number: 16 hex digits, as in the file name; NULL for an imported file
    file_name       TEXT    NOT NULL,                          -- the name of the file when it was last read
    state           TEXT    NOT NULL CHECK (state IN (
                        'active',                              -- the server appends to it
                        'sealed',                              -- complete, not fully applied yet
                        'applied',                             -- fully applied
                        'corrupt',                             -- the file was changed after it was applied; the rest is not applied
                        'missing')),                           -- the file was deleted before it was fully applied
    applied_bytes   INTEGER NOT NULL CHECK (applied_bytes >= 0),   -- bytes from the start of the file that are applied
    checksum        INTEGER NOT NULL CHECK (checksum BETWEEN 0 AND 4294967295), -- CRC-32 (IEEE) of those bytes
    lines           INTEGER NOT NULL DEFAULT 0 CHECK (lines = events + duplicates + rejected), -- lines in those bytes, without empty lines
    events          INTEGER NOT NULL DEFAULT 0 CHECK (events >= 0),     -- counted in a user's total
    duplicates      INTEGER NOT NULL DEFAULT 0 CHECK (duplicates >= 0), -- not counted: an event with the same id was counted before
    rejected        INTEGER NOT NULL DEFAULT 0 CHECK (rejected >= 0),   -- not counted: see rejected_line
    net_check       INTEGER NOT NULL DEFAULT 0,                -- sum of the counted events' micros modulo 2^64, as a signed number; for verify
    id_events       INTEGER NOT NULL DEFAULT 0 CHECK (id_events BETWEEN 0 AND events), -- of the counted events, those with an id
    id_net_check    INTEGER NOT NULL DEFAULT 0,                -- the part of net_check from events with an id
    ids_expired     INTEGER NOT NULL DEFAULT 0 CHECK (ids_expired BETWEEN 0 AND id_events), -- ids of this segment no longer in event_id
    corrupt_bytes   INTEGER NOT NULL DEFAULT 0 CHECK (corrupt_bytes >= 0), -- bytes that are not applied because the file is corrupt
    corrupt_lines   INTEGER NOT NULL DEFAULT 0 CHECK (corrupt_lines >= 0), -- lines in those bytes
    reason          TEXT,                                      -- why the segment is corrupt or missing
    created_at_ms   INTEGER NOT NULL,                          -- when this row was inserted
    applied_at_ms   INTEGER,                                   -- when bytes were last applied
    completed_at_ms INTEGER CHECK ((completed_at_ms IS NOT NULL) = (state = 'applied')), -- when the last byte was applied
    label           TEXT                                       -- of an imported file that is a native segment or a part of one: its number and tag, such as 000042-5e3fa1c29b77d0e4; NULL for all others
) STRICT;

-- Segments that are not fully applied, without reading all rows.
CREATE INDEX segment_unfinished ON segment (key) WHERE state <> 'applied';
-- The imported files that are the same segment.
CREATE INDEX segment_label ON segment (label) WHERE label IS NOT NULL;

CREATE TABLE rejected_line (
    -- Lines that were not counted: invalid, with the id of a different event, or overflowing a total.
    -- The first 10,000 of a segment; segment.rejected counts all of them.
    segment TEXT    NOT NULL,  -- segment.name
    offset  INTEGER NOT NULL,  -- bytes from the start of the file to the start of the line
    code    TEXT    NOT NULL,  -- reason for programs, such as negative
    reason  TEXT    NOT NULL,  -- reason for people
    line    TEXT    NOT NULL,  -- the first 1024 bytes of the line; invalid UTF-8 is replaced by U+FFFD
    PRIMARY KEY (segment, offset)
) STRICT, WITHOUT ROWID;

CREATE TABLE event_id (
    -- The ids of counted events. Narrow, because there may be hundreds of millions. Ids that end in 6 to 18
    -- digits after a prefix are in id_block instead.
    id           TEXT    NOT NULL PRIMARY KEY, -- id of the event
    payload      INTEGER NOT NULL,             -- 48 bits of a hash of userId, name and amount; the same id with another payload is a conflict
    segment      INTEGER NOT NULL,             -- segment.key of the counted event; that segment may be pruned
    offset       INTEGER NOT NULL,             -- bytes from the start of the file to the start of the line
    applied_at_s INTEGER NOT NULL              -- when it was counted, in seconds since 1970 UTC; the id expires some time later
) STRICT, WITHOUT ROWID;

CREATE TABLE id_block (
    -- The ids of counted events that end in 6 to 18 digits after a prefix, as run-000000000123 does: 128
    -- neighbouring numbers in one row. Of more than 18 digits the last 18 are the number. The bytes of an
    -- id alone decide in which of the two tables it is.
    prefix       TEXT    NOT NULL CHECK (prefix <> ''), -- the id without those digits
    width        INTEGER NOT NULL CHECK (width BETWEEN 6 AND 18), -- count of digits; a-000001 and a-0000001 are different ids
    block        INTEGER NOT NULL CHECK (block >= 0),   -- the digits as a number, divided by 128
    numbers      BLOB    NOT NULL, -- which of the 128 were counted (a bitmap), 32 bits of a hash of each one's payload, and runs of them with segment and offsets; src/store/id_blocks.rs describes the bytes
    applied_at_s INTEGER NOT NULL, -- when the newest of them was counted, in seconds since 1970 UTC; the block expires some time later
    PRIMARY KEY (prefix, width, block)
) STRICT, WITHOUT ROWID;

CREATE TABLE pruned (
    -- One row: the sums of the pruned segments, whose rows and files are deleted.
    one           INTEGER PRIMARY KEY CHECK (one = 1), -- there is only one row
    number        INTEGER NOT NULL DEFAULT 0, -- the highest pruned segment number; 0 if none
    segments      INTEGER NOT NULL DEFAULT 0, -- number of segments
    lines         INTEGER NOT NULL DEFAULT 0 CHECK (lines = events + duplicates + rejected), -- their lines
    events        INTEGER NOT NULL DEFAULT 0, -- their counted events, which remain in the totals
    duplicates    INTEGER NOT NULL DEFAULT 0, -- their duplicates
    rejected      INTEGER NOT NULL DEFAULT 0, -- their rejected lines
    net_check     INTEGER NOT NULL DEFAULT 0, -- sum of their net_check modulo 2^64
    file_bytes    INTEGER NOT NULL DEFAULT 0, -- length of the file of segment `number`. The file is deleted after the commit,
    file_checksum INTEGER NOT NULL DEFAULT 0, -- or at the next start, and only if its length and CRC-32 are these
    pruned_at_ms  INTEGER                     -- when a segment was last pruned
) STRICT;
INSERT INTO pruned (one) VALUES (1);

CREATE TABLE applied_sum (
    -- One row: the sums of the rows of `segment` that are fully applied, so that the ledger need not
    -- read all rows. A row is added when it becomes fully applied, and subtracted when it is deleted,
    -- in the same transaction. Its counts do not change in between.
    one             INTEGER PRIMARY KEY CHECK (one = 1),                   -- there is only one row
    segments        INTEGER NOT NULL DEFAULT 0 CHECK (segments >= 0),      -- number of segments
    native          INTEGER NOT NULL DEFAULT 0 CHECK (native BETWEEN 0 AND segments), -- of these, native segments: key > 0
    lines           INTEGER NOT NULL DEFAULT 0 CHECK (lines = events + duplicates + rejected), -- their lines
    events          INTEGER NOT NULL DEFAULT 0 CHECK (events >= 0),        -- their counted events
    duplicates      INTEGER NOT NULL DEFAULT 0 CHECK (duplicates >= 0),    -- their duplicates
    rejected        INTEGER NOT NULL DEFAULT 0 CHECK (rejected >= 0),      -- their rejected lines
    corrupt_lines   INTEGER NOT NULL DEFAULT 0 CHECK (corrupt_lines >= 0) -- their lines that are not applied because the file is corrupt
) STRICT;
INSERT INTO applied_sum (one) VALUES (1);

CREATE TABLE clock (
    -- One row: the last plausible time, to check the clock when the server starts. Nothing is pruned and
    -- no id expires while the clock is before it, or more than a year after it.
    one        INTEGER PRIMARY KEY CHECK (one = 1), -- there is only one row
    seen_at_ms INTEGER                              -- the last plausible time; NULL if none yet
) STRICT;
INSERT INTO clock (one) VALUES (1);

CREATE VIEW user_revenue (user_id, revenue, events, updated_at, revenue_micros) AS
-- For people: user_total with the revenue in units and the time in UTC. A REAL has 15 digits;
-- revenue_micros is exact.
SELECT user_id,
       revenue_micros / 1000000.0,
       events,                                                            -- events counted
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at_ms / 1000.0, 'unixepoch'), -- when an event was last applied
       revenue_micros                                                     -- in millionths, exact
FROM user_total;

CREATE VIEW segment_progress (name, state, lines, events, duplicates, rejected, corrupt_lines, applied_bytes, applied_at, reason) AS
-- For people: the segments and their lines, the newest first.
-- lines = events (counted) + duplicates (of an id that was counted before) + rejected (see rejected_line).
SELECT name, state, lines, events, duplicates, rejected, corrupt_lines, applied_bytes,
       strftime('%Y-%m-%dT%H:%M:%fZ', applied_at_ms / 1000.0, 'unixepoch'), -- when bytes were last applied
       reason                                                             -- why the segment is corrupt or missing
FROM segment
ORDER BY state = 'active' DESC, created_at_ms DESC, abs(key) DESC;

CREATE VIEW ledger (lines, applied, duplicates, rejected, corrupt) AS
-- For people: all lines that the processor has read, by what happened to them.
-- `lines = applied + duplicates + rejected + corrupt`.
SELECT s.lines + s.corrupt + a.lines + a.corrupt_lines + p.lines,
       s.events + a.events + p.events,
       s.duplicates + a.duplicates + p.duplicates,
       s.rejected + a.rejected + p.rejected,
       s.corrupt + a.corrupt_lines
FROM pruned AS p,
     applied_sum AS a,
     (SELECT coalesce(sum(lines), 0) AS lines, coalesce(sum(events), 0) AS events,
             coalesce(sum(duplicates), 0) AS duplicates, coalesce(sum(rejected), 0) AS rejected,
             coalesce(sum(corrupt_lines), 0) AS corrupt
      FROM segment
      WHERE state <> 'applied') AS s;
