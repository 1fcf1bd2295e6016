-- The tables of tallyline in PostgreSQL, shared by all nodes.

CREATE TABLE node (
    -- One row for every node: a data directory whose processor applies to this database.
    node          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- the number that the other tables refer to
    id            uuid    NOT NULL UNIQUE,  -- the UUID of its data directory
    epoch         bigint  NOT NULL,         -- rises by 1 each time a process takes the node over
    token         uuid    NOT NULL,         -- of the process that has it
    last_import_key bigint NOT NULL DEFAULT 0, -- the lowest segment.key of an imported file; no key is assigned twice
    seen_at_ms    bigint                    -- the last plausible time of the node, milliseconds since 1970 UTC; NULL if none yet
);

CREATE TABLE user_total (
    -- One row for every user and node with a counted event. A user's total is the sum over the nodes.
    user_id        text   COLLATE "C" NOT NULL CHECK (user_id <> ''), -- userId of the events
    node           integer NOT NULL,         -- node.node
    revenue_micros bigint NOT NULL,          -- added minus subtracted at this node, exact
    events         bigint NOT NULL CHECK (events > 0), -- events counted at this node
    updated_at_ms  bigint NOT NULL,          -- when an event was last applied
    PRIMARY KEY (user_id, node)
);

CREATE TABLE segment (
    -- One row for every segment that the node's processor has read and that is not pruned.
    node            integer NOT NULL,        -- node.node
    key             bigint  NOT NULL,        -- the number of a native segment; -1, -2, ... for imported files
    name            text    COLLATE "C" NOT NULL CHECK (name <> ''), -- identity: events-000042, or the file name of an imported file
    tag             text    COLLATE "C",     -- distinguishes native segments of the same number; NULL for an imported file
    file_name       text    COLLATE "C" NOT NULL, -- the name of the file when it was last read
    state           text    COLLATE "C" NOT NULL CHECK (state IN ('active', 'sealed', 'applied', 'corrupt', 'missing')),
    applied_bytes   bigint  NOT NULL CHECK (applied_bytes >= 0), -- bytes from the start of the file that are applied
    checksum        bigint  NOT NULL CHECK (checksum BETWEEN 0 AND 4294967295), -- CRC-32 (IEEE) of those bytes
    lines           bigint  NOT NULL DEFAULT 0 CHECK (lines = events + duplicates + rejected), -- lines in those bytes, without empty lines
    events          bigint  NOT NULL DEFAULT 0 CHECK (events >= 0),     -- counted in a user's total
    duplicates      bigint  NOT NULL DEFAULT 0 CHECK (duplicates >= 0), -- not counted: an event with the same id was counted before
    rejected        bigint  NOT NULL DEFAULT 0 CHECK (rejected >= 0),   -- not counted: see rejected_line
    net_check       bigint  NOT NULL DEFAULT 0, -- sum of the counted events' micros modulo 2^64, as a signed number; for verify
    id_events       bigint  NOT NULL DEFAULT 0 CHECK (id_events BETWEEN 0 AND events), -- of the counted events, those with an id
    id_net_check    bigint  NOT NULL DEFAULT 0, -- the part of net_check from events with an id
    ids_expired     bigint  NOT NULL DEFAULT 0 CHECK (ids_expired BETWEEN 0 AND id_events), -- ids of this segment that have expired
    corrupt_bytes   bigint  NOT NULL DEFAULT 0 CHECK (corrupt_bytes >= 0), -- bytes that are not applied because the file is corrupt
    corrupt_lines   bigint  NOT NULL DEFAULT 0 CHECK (corrupt_lines >= 0), -- lines in those bytes
    reason          text,                    -- why the segment is corrupt or missing
    created_at_ms   bigint  NOT NULL,        -- when this row was inserted
    applied_at_ms   bigint,                  -- when bytes were last applied
    completed_at_ms bigint CHECK ((completed_at_ms IS NOT NULL) = (state = 'applied')), -- when the last byte was applied
    PRIMARY KEY (node, key),
    UNIQUE (node, name)
);
CREATE INDEX segment_unfinished ON segment (node, key) WHERE state <> 'applied';

CREATE TABLE rejected_line (
    -- Lines that were not counted. The first 10,000 of a segment; segment.rejected counts all of them.
    node     integer NOT NULL,               -- node.node
    segment  text    COLLATE "C" NOT NULL,   -- segment.name
    "offset" bigint  NOT NULL,               -- bytes from the start of the file to the start of the line
    code     text    COLLATE "C" NOT NULL,   -- reason for programs, such as negative
    reason   bytea   NOT NULL,               -- reason for people, UTF-8; it may quote a NUL
    line     bytea   NOT NULL,               -- the first 1024 bytes of the line; invalid UTF-8 is replaced by U+FFFD
    PRIMARY KEY (node, segment, "offset")
);

CREATE TABLE event_id (
    -- The ids of counted events, of all nodes. Ids that end in 6 to 18 digits after a prefix are in id_block.
    id           text    COLLATE "C" PRIMARY KEY, -- id of the event
    payload      bigint  NOT NULL,           -- 48 bits of a hash of userId, name and amount
    node         integer NOT NULL,           -- node.node of the counted event
    segment      bigint  NOT NULL,           -- segment.key of the counted event; that segment may be pruned
    "offset"     bigint  NOT NULL,           -- bytes from the start of the file to the start of the line
    applied_at_s bigint  NOT NULL            -- when it was counted, in seconds since 1970 UTC
);

CREATE TABLE id_block (
    -- The ids of counted events that end in 6 to 18 digits after a prefix, of all nodes: 128 neighbouring
    -- numbers in one row.
    prefix       text    COLLATE "C" NOT NULL CHECK (prefix <> ''), -- the id without those digits
    width        smallint NOT NULL CHECK (width BETWEEN 6 AND 18), -- count of digits
    block        bigint  NOT NULL CHECK (block >= 0), -- the digits as a number, divided by 128
    numbers      bytea   NOT NULL,           -- bitmap, hashes and runs; src/store/id_blocks.rs describes the bytes
    applied_at_s bigint  NOT NULL,           -- when the newest of them was counted, in seconds since 1970 UTC
    PRIMARY KEY (prefix, width, block)
);

CREATE TABLE pruned (
    -- One row for every node: the sums of its pruned segments, whose rows and files are deleted.
    node          integer PRIMARY KEY,       -- node.node
    number        bigint NOT NULL DEFAULT 0, -- the highest pruned segment number; 0 if none
    segments      bigint NOT NULL DEFAULT 0, -- number of segments
    lines         bigint NOT NULL DEFAULT 0 CHECK (lines = events + duplicates + rejected), -- their lines
    events        bigint NOT NULL DEFAULT 0, -- their counted events, which remain in the totals
    duplicates    bigint NOT NULL DEFAULT 0, -- their duplicates
    rejected      bigint NOT NULL DEFAULT 0, -- their rejected lines
    net_check     bigint NOT NULL DEFAULT 0, -- sum of their net_check modulo 2^64
    file_bytes    bigint NOT NULL DEFAULT 0, -- length of the file of segment `number`
    file_checksum bigint NOT NULL DEFAULT 0, -- CRC-32 of that file
    pruned_at_ms  bigint                     -- when a segment was last pruned
);

CREATE TABLE applied_sum (
    -- One row for every node: the sums of its rows of `segment` that are fully applied.
    node            integer PRIMARY KEY,     -- node.node
    segments        bigint NOT NULL DEFAULT 0 CHECK (segments >= 0),
    native          bigint NOT NULL DEFAULT 0 CHECK (native BETWEEN 0 AND segments),
    lines           bigint NOT NULL DEFAULT 0 CHECK (lines = events + duplicates + rejected),
    events          bigint NOT NULL DEFAULT 0 CHECK (events >= 0),
    duplicates      bigint NOT NULL DEFAULT 0 CHECK (duplicates >= 0),
    rejected        bigint NOT NULL DEFAULT 0 CHECK (rejected >= 0),
    corrupt_lines   bigint NOT NULL DEFAULT 0 CHECK (corrupt_lines >= 0)
);
