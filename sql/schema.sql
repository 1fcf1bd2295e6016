-- tallyline's database: exact totals per user, and how far each file of events has been applied.
--
-- The files of events are the truth and this is a view of them: it can be deleted and made again
-- from the files. Everything here changes in one transaction together with segment.applied_bytes,
-- so a total is never ahead of, nor behind, what the rows of `segment` say.
-- Money is whole micros, 10^-6 of a unit. Times are milliseconds since 1970 UTC where a name ends
-- in _ms. Readable with SQLite 3.40 and later.
-- What a table is for stands inside its parentheses: SQLite keeps the text from CREATE on, so
-- `.schema` and Datasette show it.

PRAGMA application_id = 0x74616C79; -- 'taly'
PRAGMA user_version = 3;

CREATE TABLE directory (
    -- One row: the data directory whose files this database is about.
    one             INTEGER PRIMARY KEY CHECK (one = 1),            -- there is one row
    uuid            TEXT,                                           -- as in directory.json; NULL until a processor has opened it
    last_import_key INTEGER NOT NULL DEFAULT 0 CHECK (last_import_key <= 0) -- the lowest segment.key given to an imported file; none is given twice
) STRICT;
INSERT INTO directory (one) VALUES (1);

CREATE TABLE user_total (
    -- One row for every user with a counted event, a sum of 0 too. For people: the view user_revenue.
    user_id        TEXT    NOT NULL PRIMARY KEY CHECK (user_id <> ''), -- userId of the events
    revenue_micros INTEGER NOT NULL,                                   -- added minus subtracted, exact
    events         INTEGER NOT NULL CHECK (events > 0),                -- events counted
    updated_at_ms  INTEGER NOT NULL                                    -- when it was last applied to
) STRICT, WITHOUT ROWID;

CREATE TABLE segment (
    -- One row for every file of events that has been seen by the processor and not been pruned. For
    -- people: the view segment_progress.
    key             INTEGER PRIMARY KEY,                       -- the number of one of ours; -1, -2, ... for files from elsewhere
    name            TEXT    NOT NULL UNIQUE CHECK (name <> ''), -- identity: events-000042, or the file name of one from elsewhere
    number          INTEGER GENERATED ALWAYS AS (iif(key > 0, key, NULL)) VIRTUAL, -- the number of one of ours
    tag             TEXT,                                      -- which native segment of that number: 16 hex digits, as in its file name; NULL for an imported file
    file_name       TEXT    NOT NULL,                          -- what the file was called when last seen
    state           TEXT    NOT NULL CHECK (state IN (
                        'active',                              -- still appended to
                        'sealed',                              -- no longer appended to, not wholly applied yet
                        'whole',                               -- wholly applied
                        'untrusted',                           -- changed after it was applied from: no more of it is applied
                        'lost')),                              -- the file is gone before it was wholly applied
    applied_bytes   INTEGER NOT NULL CHECK (applied_bytes >= 0),   -- bytes from the start that are applied: the progress
    checksum        INTEGER NOT NULL CHECK (checksum BETWEEN 0 AND 4294967295), -- CRC-32 (IEEE) of those bytes
    lines           INTEGER NOT NULL DEFAULT 0 CHECK (lines = events + duplicates + rejected), -- lines in those bytes, empty ones left out
    events          INTEGER NOT NULL DEFAULT 0 CHECK (events >= 0),     -- counted
    duplicates      INTEGER NOT NULL DEFAULT 0 CHECK (duplicates >= 0), -- not counted: an event of that id was counted before
    rejected        INTEGER NOT NULL DEFAULT 0 CHECK (rejected >= 0),   -- not counted: see rejected_line
    net_check       INTEGER NOT NULL DEFAULT 0,                -- check figure: sum of the counted events' micros modulo 2^64, as a signed number
    id_events       INTEGER NOT NULL DEFAULT 0 CHECK (id_events BETWEEN 0 AND events), -- of the counted events, those with an id
    id_net_check    INTEGER NOT NULL DEFAULT 0,                -- of the check figure, the part of events with an id
    ids_let_go      INTEGER NOT NULL DEFAULT 0 CHECK (ids_let_go BETWEEN 0 AND id_events), -- ids of this segment no longer in event_id
    untrusted_bytes INTEGER NOT NULL DEFAULT 0 CHECK (untrusted_bytes >= 0), -- bytes that were not applied because the file is untrusted
    untrusted_lines INTEGER NOT NULL DEFAULT 0 CHECK (untrusted_lines >= 0), -- lines in those bytes
    reason          TEXT,                                      -- why it is untrusted or lost
    created_at_ms   INTEGER NOT NULL,                          -- when this row was made
    applied_at_ms   INTEGER,                                   -- when bytes were last applied
    whole_at_ms     INTEGER CHECK ((whole_at_ms IS NOT NULL) = (state = 'whole')) -- when the last byte was applied
) STRICT;

-- What still needs work, found without reading the rows of years.
CREATE INDEX segment_unfinished ON segment (key) WHERE state <> 'whole';

CREATE TABLE rejected_line (
    -- Lines that were not counted: no event, an id that contradicts another event, a total that would
    -- overflow. The first 10,000 of a segment; segment.rejected counts them all.
    segment TEXT    NOT NULL,  -- segment.name
    offset  INTEGER NOT NULL,  -- bytes from the start of the file to the start of the line
    code    TEXT    NOT NULL,  -- for programs, such as negative
    reason  TEXT    NOT NULL,  -- for people
    line    TEXT    NOT NULL,  -- the line's first 1024 bytes; what is not UTF-8 is shown as U+FFFD
    PRIMARY KEY (segment, offset)
) STRICT, WITHOUT ROWID;

CREATE TABLE event_id (
    -- The ids of counted events: each counts once. Narrow, for there may be hundreds of millions. Ids that
    -- end in 6 to 18 digits after a prefix are not here but in id_block.
    id           TEXT    NOT NULL PRIMARY KEY, -- the sender's id
    payload      INTEGER NOT NULL,             -- 48 bits of a hash of userId, name and amount: the same id with another payload is a conflict
    segment      INTEGER NOT NULL,             -- segment.key of the counted event (that segment may be pruned by now)
    offset       INTEGER NOT NULL,             -- bytes from the start of that file to the start of its line
    applied_at_s INTEGER NOT NULL              -- when it was counted, seconds since 1970 UTC: ids are kept for a time after that
) STRICT, WITHOUT ROWID;

CREATE TABLE id_block (
    -- The ids of counted events that end in 6 to 18 digits after a prefix (of more digits the last 18
    -- count), as run-000000000123 does: 128 neighbouring numbers a row. An id lies in one of the two
    -- tables, which follows from its bytes alone.
    prefix       TEXT    NOT NULL CHECK (prefix <> ''), -- the id without those digits
    width        INTEGER NOT NULL CHECK (width BETWEEN 6 AND 18), -- how many digits: a-000001 and a-0000001 are two ids
    block        INTEGER NOT NULL CHECK (block >= 0),   -- the digits as a number, divided by 128
    numbers      BLOB    NOT NULL, -- which of the 128 were counted (a bitmap), 32 bits of a hash of the payload of each, and runs of them: segment and offsets. The bytes are described in src/store/id_blocks.rs
    applied_at_s INTEGER NOT NULL, -- when the newest of them was counted, seconds since 1970 UTC: the block is kept for a time after that
    PRIMARY KEY (prefix, width, block)
) STRICT, WITHOUT ROWID;

CREATE TABLE pruned (
    -- One row: the sum of the segments whose rows and files retention has let go.
    one           INTEGER PRIMARY KEY CHECK (one = 1), -- there is one row
    number        INTEGER NOT NULL DEFAULT 0, -- the highest segment number let go; 0: none
    segments      INTEGER NOT NULL DEFAULT 0, -- how many segments
    lines         INTEGER NOT NULL DEFAULT 0 CHECK (lines = events + duplicates + rejected), -- their lines
    events        INTEGER NOT NULL DEFAULT 0, -- their counted events, which are still in the totals
    duplicates    INTEGER NOT NULL DEFAULT 0, -- their duplicates
    rejected      INTEGER NOT NULL DEFAULT 0, -- their rejected lines
    net_check     INTEGER NOT NULL DEFAULT 0, -- their check figures, added modulo 2^64
    file_bytes    INTEGER NOT NULL DEFAULT 0, -- length of the file of segment `number`: it is removed after the commit,
    file_checksum INTEGER NOT NULL DEFAULT 0, -- ... at the next start if need be, and only if length and CRC-32 are these
    pruned_at_ms  INTEGER                     -- when the last one was let go
) STRICT;
INSERT INTO pruned (one) VALUES (1);

CREATE TABLE applied_sum (
    -- One row: the sum of the rows of `segment` that are whole, so that the ledger does not read the
    -- rows of years. A row is added when it becomes whole and taken off when it is deleted, in the
    -- same transactions; after that its counts do not change.
    one             INTEGER PRIMARY KEY CHECK (one = 1),                   -- there is one row
    segments        INTEGER NOT NULL DEFAULT 0 CHECK (segments >= 0),      -- how many segments
    native          INTEGER NOT NULL DEFAULT 0 CHECK (native BETWEEN 0 AND segments), -- of these, our own: key > 0
    lines           INTEGER NOT NULL DEFAULT 0 CHECK (lines = events + duplicates + rejected), -- their lines
    events          INTEGER NOT NULL DEFAULT 0 CHECK (events >= 0),        -- their counted events
    duplicates      INTEGER NOT NULL DEFAULT 0 CHECK (duplicates >= 0),    -- their duplicates
    rejected        INTEGER NOT NULL DEFAULT 0 CHECK (rejected >= 0),      -- their rejected lines
    untrusted_lines INTEGER NOT NULL DEFAULT 0 CHECK (untrusted_lines >= 0) -- their untrusted lines
) STRICT;
INSERT INTO applied_sum (one) VALUES (1);

CREATE TABLE clock (
    -- One row: whether the clock can be believed when the server starts. Segments and ids are not let
    -- go by a clock that is before this, or more than a year past it.
    one        INTEGER PRIMARY KEY CHECK (one = 1), -- there is one row
    seen_at_ms INTEGER                              -- the last time that was believed; NULL: none yet
) STRICT;
INSERT INTO clock (one) VALUES (1);

CREATE VIEW user_revenue (user_id, revenue, events, updated_at, revenue_micros) AS
-- For people: what user_total holds, revenue as a number to look at and the time in UTC. A REAL has
-- 15 digits; every digit is in revenue_micros.
SELECT user_id,
       revenue_micros / 1000000.0,
       events,                                                            -- events counted
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at_ms / 1000.0, 'unixepoch'), -- when it was last applied to
       revenue_micros                                                     -- millionths, exact
FROM user_total;

CREATE VIEW segment_progress (name, state, lines, events, duplicates, rejected, untrusted_lines, applied_bytes, applied_at, reason) AS
-- For people: the files and what became of their lines, the latest first.
-- lines = events (counted) + duplicates (of that id one was counted before) + rejected (see rejected_line).
SELECT name, state, lines, events, duplicates, rejected, untrusted_lines, applied_bytes,
       strftime('%Y-%m-%dT%H:%M:%fZ', applied_at_ms / 1000.0, 'unixepoch'), -- when bytes were last applied
       reason                                                             -- why it is untrusted or lost
FROM segment
ORDER BY state = 'active' DESC, created_at_ms DESC, abs(key) DESC;

CREATE VIEW ledger (lines, applied, duplicates, rejected, untrusted) AS
-- For people: every line of the files the processor has read, and what became of it.
-- lines = applied + duplicates + rejected + untrusted.
SELECT s.lines + s.untrusted + a.lines + a.untrusted_lines + p.lines,
       s.events + a.events + p.events,
       s.duplicates + a.duplicates + p.duplicates,
       s.rejected + a.rejected + p.rejected,
       s.untrusted + a.untrusted_lines
FROM pruned AS p,
     applied_sum AS a,
     (SELECT coalesce(sum(lines), 0) AS lines, coalesce(sum(events), 0) AS events,
             coalesce(sum(duplicates), 0) AS duplicates, coalesce(sum(rejected), 0) AS rejected,
             coalesce(sum(untrusted_lines), 0) AS untrusted
      FROM segment
      WHERE state <> 'whole') AS s;
