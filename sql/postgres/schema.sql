-- tallyline's tables in PostgreSQL: exact totals per user, and how far each node has applied its files.
--
-- Several nodes share one database. Each node ingests into its own files, and every row that comes from
-- these files carries the node's number, so nodes do not write to the same rows, and each node can verify
-- and rebuild its own part. A user's total is the sum over the nodes. Ids are shared: an event with an id
-- counts once, whichever node receives it.
--
-- The files of events are the source of truth. A node changes totals, ids and rejected lines in one
-- transaction together with segment.applied_bytes, so the totals always correspond to the offsets in
-- `segment`. Each such transaction first locks the node's row and compares epoch and token (fencing).
--
-- Amounts are whole micros, 10^-6 of a unit. Times in columns that end in _ms are milliseconds since
-- 1970 UTC. All tables are in the schema `tallyline`, and statements name it, because a connection pooler
-- in transaction mode does not keep a search_path. Text keys are compared by bytes (COLLATE "C").
-- Statements lock rows in this order: node, segment, event_id, id_block, user_total; bytewise within each.
--
-- The text runs in one transaction, after CREATE SCHEMA tallyline unless the schema exists. If two nodes
-- run it at the same time, one of the two fails, and finds the tables when it tries again.

CREATE TABLE tallyline.cluster (
    one     integer NOT NULL PRIMARY KEY CHECK (one = 1),
    version integer NOT NULL,
    id      uuid    NOT NULL
);
COMMENT ON TABLE  tallyline.cluster         IS 'One row: what all nodes share.';
COMMENT ON COLUMN tallyline.cluster.one     IS 'there is only one row';
COMMENT ON COLUMN tallyline.cluster.version IS 'version of these tables; a program refuses a newer one';
COMMENT ON COLUMN tallyline.cluster.id      IS 'random; distinguishes this database from others';

CREATE TABLE tallyline.node (
    node            integer NOT NULL PRIMARY KEY CHECK (node > 0),
    id              uuid    NOT NULL UNIQUE,
    name            text    NOT NULL,
    state           text    NOT NULL CHECK (state IN ('member', 'removed')),
    epoch           bigint  NOT NULL CHECK (epoch > 0),
    token           uuid    NOT NULL,
    last_import_key bigint  NOT NULL DEFAULT 0 CHECK (last_import_key <= 0),
    keep_ids_ms     bigint  CHECK (keep_ids_ms > 0),
    seen_at_ms      bigint,
    created_at_ms   bigint  NOT NULL,
    acquired_at_ms  bigint  NOT NULL
);
COMMENT ON TABLE  tallyline.node                 IS 'One row for every data directory that was ever a node. Every transaction that writes for the node locks the row (FOR SHARE) and compares epoch and token.';
COMMENT ON COLUMN tallyline.node.node            IS 'the number by which other tables refer to the node; assigned when the node first starts, and read again at each start';
COMMENT ON COLUMN tallyline.node.id              IS 'UUID of the data directory, as in its directory.json';
COMMENT ON COLUMN tallyline.node.name            IS 'host name of the machine that last started the node; for people';
COMMENT ON COLUMN tallyline.node.state           IS 'member, or removed: its totals and ids stay, and the data directory is refused if it comes back';
COMMENT ON COLUMN tallyline.node.epoch           IS 'rises with each start, adoption and removal; a transaction of an earlier epoch is refused';
COMMENT ON COLUMN tallyline.node.token           IS 'random, one for each epoch; the data directory keeps a list of its tokens in node.json, so a copy of the directory is detected';
COMMENT ON COLUMN tallyline.node.last_import_key IS 'the lowest segment.key assigned to an imported file of the node; no key is assigned twice, because rows of event_id may outlive the row of their segment';
COMMENT ON COLUMN tallyline.node.keep_ids_ms     IS 'the deduplication window that the node was started with; NULL: ids never expire. The longest window of all members applies to all of them';
COMMENT ON COLUMN tallyline.node.seen_at_ms      IS 'the last plausible time, to check the clock when the node starts. Nothing is pruned and no id expires while the clock is before it, or more than a year after it; NULL if none yet';
COMMENT ON COLUMN tallyline.node.created_at_ms   IS 'when the node first started';
COMMENT ON COLUMN tallyline.node.acquired_at_ms  IS 'when the node last started, or was adopted or removed';

CREATE TABLE tallyline.node_status (
    node            integer NOT NULL PRIMARY KEY,
    seen_at_ms      bigint  NOT NULL,
    version         text    NOT NULL,
    pending_lines   bigint  NOT NULL CHECK (pending_lines >= 0),
    lag_ms          bigint  NOT NULL CHECK (lag_ms >= 0),
    reasons         text    NOT NULL
);
COMMENT ON TABLE  tallyline.node_status                 IS 'What each node last reported about itself, for people.';
COMMENT ON COLUMN tallyline.node_status.node            IS 'node.node';
COMMENT ON COLUMN tallyline.node_status.seen_at_ms      IS 'when the node last reported, by the clock of the database';
COMMENT ON COLUMN tallyline.node_status.version         IS 'version of the program';
COMMENT ON COLUMN tallyline.node_status.pending_lines   IS 'lines in the files of the node that were not applied';
COMMENT ON COLUMN tallyline.node_status.lag_ms          IS 'age of the oldest acknowledged event that was not applied';
COMMENT ON COLUMN tallyline.node_status.reasons         IS 'why the node was not ready; empty if it was';

CREATE TABLE tallyline.user_total (
    user_id        text    COLLATE "C" NOT NULL CHECK (user_id <> ''),
    node           integer NOT NULL,
    revenue_micros bigint  NOT NULL,
    events         bigint  NOT NULL CHECK (events > 0),
    updated_at_ms  bigint  NOT NULL,
    PRIMARY KEY (user_id, node)
);
COMMENT ON TABLE  tallyline.user_total                IS 'One row for every user and node with a counted event. A user''s total is the sum over the nodes. For people: the view user_revenue.';
COMMENT ON COLUMN tallyline.user_total.user_id        IS 'userId of the events';
COMMENT ON COLUMN tallyline.user_total.node           IS 'node.node';
COMMENT ON COLUMN tallyline.user_total.revenue_micros IS 'added minus subtracted at this node, exact';
COMMENT ON COLUMN tallyline.user_total.events         IS 'events counted at this node';
COMMENT ON COLUMN tallyline.user_total.updated_at_ms  IS 'when an event was last applied';

CREATE TABLE tallyline.segment (
    node            integer NOT NULL,
    key             bigint  NOT NULL,
    name            text    COLLATE "C" NOT NULL CHECK (name <> ''),
    tag             text    COLLATE "C",
    file_name       text    COLLATE "C" NOT NULL,
    state           text    COLLATE "C" NOT NULL CHECK (state IN ('active', 'sealed', 'applied', 'corrupt', 'missing')),
    applied_bytes   bigint  NOT NULL CHECK (applied_bytes >= 0),
    checksum        bigint  NOT NULL CHECK (checksum BETWEEN 0 AND 4294967295),
    lines           bigint  NOT NULL DEFAULT 0,
    events          bigint  NOT NULL DEFAULT 0 CHECK (events >= 0),
    duplicates      bigint  NOT NULL DEFAULT 0 CHECK (duplicates >= 0),
    rejected        bigint  NOT NULL DEFAULT 0 CHECK (rejected >= 0),
    net_check       bigint  NOT NULL DEFAULT 0,
    id_events       bigint  NOT NULL DEFAULT 0 CHECK (id_events BETWEEN 0 AND events),
    id_net_check    bigint  NOT NULL DEFAULT 0,
    ids_expired     bigint  NOT NULL DEFAULT 0 CHECK (ids_expired BETWEEN 0 AND id_events),
    corrupt_bytes   bigint  NOT NULL DEFAULT 0 CHECK (corrupt_bytes >= 0),
    corrupt_lines   bigint  NOT NULL DEFAULT 0 CHECK (corrupt_lines >= 0),
    recount         boolean NOT NULL DEFAULT false,
    reason          text,
    created_at_ms   bigint  NOT NULL,
    applied_at_ms   bigint,
    completed_at_ms bigint,
    label           text    COLLATE "C",
    PRIMARY KEY (node, key),
    UNIQUE (node, name),
    CHECK (lines = events + duplicates + rejected),
    CHECK ((completed_at_ms IS NOT NULL) = (state = 'applied'))
);
COMMENT ON TABLE  tallyline.segment                 IS 'One row for every segment that a node''s processor has read and that is not pruned. For people: the view segment_progress.';
COMMENT ON COLUMN tallyline.segment.node            IS 'node.node';
COMMENT ON COLUMN tallyline.segment.key             IS 'the number of a native segment; -1, -2, ... for imported files of the node';
COMMENT ON COLUMN tallyline.segment.name            IS 'identity within the node: events-000042, or the file name of an imported file';
COMMENT ON COLUMN tallyline.segment.tag             IS 'distinguishes native segments of the same number: 16 hex digits, as in the file name; NULL for an imported file';
COMMENT ON COLUMN tallyline.segment.file_name       IS 'the name of the file when it was last read';
COMMENT ON COLUMN tallyline.segment.state           IS 'active: the server appends to it; sealed: complete, not fully applied yet; applied: fully applied; corrupt: the file was changed after it was applied, and the rest is not applied; missing: the file was deleted before it was fully applied';
COMMENT ON COLUMN tallyline.segment.applied_bytes   IS 'bytes from the start of the file that are applied';
COMMENT ON COLUMN tallyline.segment.checksum        IS 'CRC-32 (IEEE) of those bytes';
COMMENT ON COLUMN tallyline.segment.lines           IS 'lines in those bytes, without empty lines';
COMMENT ON COLUMN tallyline.segment.events          IS 'counted in a user''s total';
COMMENT ON COLUMN tallyline.segment.duplicates      IS 'not counted: an event with the same id was counted before, at this node or another';
COMMENT ON COLUMN tallyline.segment.rejected        IS 'not counted: see rejected_line';
COMMENT ON COLUMN tallyline.segment.net_check       IS 'sum of the counted events'' micros modulo 2^64, as a signed number; for verify';
COMMENT ON COLUMN tallyline.segment.id_events       IS 'of the counted events, those with an id';
COMMENT ON COLUMN tallyline.segment.id_net_check    IS 'the part of net_check from events with an id';
COMMENT ON COLUMN tallyline.segment.ids_expired     IS 'ids of this segment no longer in event_id or id_block';
COMMENT ON COLUMN tallyline.segment.corrupt_bytes   IS 'bytes that are not applied because the file is corrupt';
COMMENT ON COLUMN tallyline.segment.corrupt_lines   IS 'lines in those bytes';
COMMENT ON COLUMN tallyline.segment.recount         IS 'whether another node''s rebuild released an id that this segment holds as a duplicate, so that this node must be rebuilt';
COMMENT ON COLUMN tallyline.segment.reason          IS 'why the segment is corrupt or missing';
COMMENT ON COLUMN tallyline.segment.created_at_ms   IS 'when this row was inserted';
COMMENT ON COLUMN tallyline.segment.applied_at_ms   IS 'when bytes were last applied';
COMMENT ON COLUMN tallyline.segment.completed_at_ms IS 'when the last byte was applied';
COMMENT ON COLUMN tallyline.segment.label           IS 'of an imported file that is a native segment or a part of one: its number and tag, such as 000042-5e3fa1c29b77d0e4; NULL for all others';

-- Segments that are not fully applied, without reading all rows.
CREATE INDEX segment_unfinished ON tallyline.segment (node, key) WHERE state <> 'applied';
-- A data directory that was copied and given another UUID has segments of another node.
CREATE INDEX segment_tag ON tallyline.segment (tag);
-- The imported files of a node that are the same segment.
CREATE INDEX segment_label ON tallyline.segment (node, label) WHERE label IS NOT NULL;

CREATE TABLE tallyline.rejected_line (
    node     integer NOT NULL,
    segment  text    COLLATE "C" NOT NULL,
    "offset" bigint  NOT NULL,
    code     text    COLLATE "C" NOT NULL,
    reason   bytea   NOT NULL,
    line     bytea   NOT NULL,
    PRIMARY KEY (node, segment, "offset")
);
COMMENT ON TABLE  tallyline.rejected_line          IS 'Lines that were not counted: invalid, with the id of a different event, or overflowing a total. The first 10,000 of a segment; segment.rejected counts all of them.';
COMMENT ON COLUMN tallyline.rejected_line.node     IS 'node.node';
COMMENT ON COLUMN tallyline.rejected_line.segment  IS 'segment.name';
COMMENT ON COLUMN tallyline.rejected_line."offset" IS 'bytes from the start of the file to the start of the line';
COMMENT ON COLUMN tallyline.rejected_line.code     IS 'reason for programs, such as negative';
COMMENT ON COLUMN tallyline.rejected_line.reason   IS 'reason for people, in UTF-8; bytes, because it may quote a NUL, which PostgreSQL''s text cannot hold';
COMMENT ON COLUMN tallyline.rejected_line.line     IS 'the first 1024 bytes of the line; invalid UTF-8 is replaced by U+FFFD';

CREATE TABLE tallyline.event_id (
    id           text    COLLATE "C" NOT NULL PRIMARY KEY,
    payload      bigint  NOT NULL,
    node         integer NOT NULL,
    segment      bigint  NOT NULL,
    "offset"     bigint  NOT NULL,
    applied_at_s bigint  NOT NULL
);
COMMENT ON TABLE  tallyline.event_id              IS 'The ids of counted events, of all nodes. Ids that end in 6 to 18 digits after a prefix are in id_block instead.';
COMMENT ON COLUMN tallyline.event_id.id           IS 'id of the event';
COMMENT ON COLUMN tallyline.event_id.payload      IS '48 bits of a hash of userId, name and amount; the same id with another payload is a conflict';
COMMENT ON COLUMN tallyline.event_id.node         IS 'node.node of the node at which the event was counted';
COMMENT ON COLUMN tallyline.event_id.segment      IS 'segment.key of the counted event; that segment may be pruned';
COMMENT ON COLUMN tallyline.event_id."offset"     IS 'bytes from the start of the file to the start of the line';
COMMENT ON COLUMN tallyline.event_id.applied_at_s IS 'when it was counted, in seconds since 1970 UTC; the id expires some time later';

CREATE TABLE tallyline.id_block (
    prefix       text     COLLATE "C" NOT NULL CHECK (prefix <> ''),
    width        smallint NOT NULL CHECK (width BETWEEN 6 AND 18),
    block        bigint   NOT NULL CHECK (block >= 0),
    numbers      bytea    NOT NULL,
    applied_at_s bigint   NOT NULL,
    PRIMARY KEY (prefix, width, block)
);
COMMENT ON TABLE  tallyline.id_block              IS 'The ids of counted events, of all nodes, that end in 6 to 18 digits after a prefix, as run-000000000123 does: 128 neighbouring numbers in one row. Of more than 18 digits the last 18 are the number. The bytes of an id alone decide in which of the two tables it is.';
COMMENT ON COLUMN tallyline.id_block.prefix       IS 'the id without those digits';
COMMENT ON COLUMN tallyline.id_block.width        IS 'count of digits; a-000001 and a-0000001 are different ids';
COMMENT ON COLUMN tallyline.id_block.block        IS 'the digits as a number, divided by 128';
COMMENT ON COLUMN tallyline.id_block.numbers      IS 'which of the 128 were counted (a bitmap), 32 bits of a hash of each one''s payload, and runs of them with node, segment and offsets; src/store/id_blocks.rs describes the bytes';
COMMENT ON COLUMN tallyline.id_block.applied_at_s IS 'when the newest of them was counted, in seconds since 1970 UTC; the block expires some time later';

CREATE TABLE tallyline.pruned (
    node          integer NOT NULL PRIMARY KEY,
    number        bigint  NOT NULL DEFAULT 0,
    segments      bigint  NOT NULL DEFAULT 0,
    lines         bigint  NOT NULL DEFAULT 0,
    events        bigint  NOT NULL DEFAULT 0,
    duplicates    bigint  NOT NULL DEFAULT 0,
    rejected      bigint  NOT NULL DEFAULT 0,
    net_check     bigint  NOT NULL DEFAULT 0,
    file_bytes    bigint  NOT NULL DEFAULT 0,
    file_checksum bigint  NOT NULL DEFAULT 0,
    pruned_at_ms  bigint,
    CHECK (lines = events + duplicates + rejected)
);
COMMENT ON TABLE  tallyline.pruned               IS 'One row for each node: the sums of its pruned segments, whose rows and files are deleted.';
COMMENT ON COLUMN tallyline.pruned.node          IS 'node.node';
COMMENT ON COLUMN tallyline.pruned.number        IS 'the highest pruned segment number; 0 if none';
COMMENT ON COLUMN tallyline.pruned.segments      IS 'number of segments';
COMMENT ON COLUMN tallyline.pruned.lines         IS 'their lines';
COMMENT ON COLUMN tallyline.pruned.events        IS 'their counted events, which remain in the totals';
COMMENT ON COLUMN tallyline.pruned.duplicates    IS 'their duplicates';
COMMENT ON COLUMN tallyline.pruned.rejected      IS 'their rejected lines';
COMMENT ON COLUMN tallyline.pruned.net_check     IS 'sum of their net_check modulo 2^64';
COMMENT ON COLUMN tallyline.pruned.file_bytes    IS 'length of the file of segment `number`; the file is deleted after the commit, or at the next start, and only if its length and CRC-32 are these';
COMMENT ON COLUMN tallyline.pruned.file_checksum IS 'CRC-32 of that file';
COMMENT ON COLUMN tallyline.pruned.pruned_at_ms  IS 'when a segment was last pruned';

CREATE TABLE tallyline.applied_sum (
    node          integer NOT NULL PRIMARY KEY,
    segments      bigint  NOT NULL DEFAULT 0 CHECK (segments >= 0),
    native        bigint  NOT NULL DEFAULT 0 CHECK (native BETWEEN 0 AND segments),
    lines         bigint  NOT NULL DEFAULT 0,
    events        bigint  NOT NULL DEFAULT 0 CHECK (events >= 0),
    duplicates    bigint  NOT NULL DEFAULT 0 CHECK (duplicates >= 0),
    rejected      bigint  NOT NULL DEFAULT 0 CHECK (rejected >= 0),
    corrupt_lines bigint  NOT NULL DEFAULT 0 CHECK (corrupt_lines >= 0),
    CHECK (lines = events + duplicates + rejected)
);
COMMENT ON TABLE  tallyline.applied_sum               IS 'One row for each node: the sums of its rows of segment that are fully applied, so that the ledger need not read all rows. A row is added when it becomes fully applied, and subtracted when it is deleted, in the same transaction.';
COMMENT ON COLUMN tallyline.applied_sum.node          IS 'node.node';
COMMENT ON COLUMN tallyline.applied_sum.segments      IS 'number of segments';
COMMENT ON COLUMN tallyline.applied_sum.native        IS 'of these, native segments: key > 0';
COMMENT ON COLUMN tallyline.applied_sum.lines         IS 'their lines';
COMMENT ON COLUMN tallyline.applied_sum.events        IS 'their counted events';
COMMENT ON COLUMN tallyline.applied_sum.duplicates    IS 'their duplicates';
COMMENT ON COLUMN tallyline.applied_sum.rejected      IS 'their rejected lines';
COMMENT ON COLUMN tallyline.applied_sum.corrupt_lines IS 'their lines that are not applied because the file is corrupt';

CREATE TABLE tallyline.overall (
    node           integer NOT NULL PRIMARY KEY,
    users          bigint  NOT NULL CHECK (users >= 0),
    events         bigint  NOT NULL CHECK (events >= 0),
    revenue_micros numeric NOT NULL,
    updated_at_ms  bigint
);
COMMENT ON TABLE  tallyline.overall                IS 'One row for each node: the sums over its rows of user_total, so that no reader has to add them up. They change in the same transaction.';
COMMENT ON COLUMN tallyline.overall.node           IS 'node.node';
COMMENT ON COLUMN tallyline.overall.users          IS 'users with a counted event at this node; a user may be at several nodes';
COMMENT ON COLUMN tallyline.overall.events         IS 'counted events';
COMMENT ON COLUMN tallyline.overall.revenue_micros IS 'sum of all revenues at this node, exact';
COMMENT ON COLUMN tallyline.overall.updated_at_ms  IS 'when an event was last applied';

CREATE VIEW tallyline.user_revenue (user_id, revenue, events, updated_at, revenue_micros) AS
SELECT user_id,
       round(sum(revenue_micros) / 1000000, 6),
       sum(events),
       to_timestamp(max(updated_at_ms) / 1000.0),
       sum(revenue_micros)
FROM tallyline.user_total
GROUP BY user_id;
COMMENT ON VIEW   tallyline.user_revenue                IS 'For people: the total of each user over all nodes.';
COMMENT ON COLUMN tallyline.user_revenue.user_id        IS 'userId of the events';
COMMENT ON COLUMN tallyline.user_revenue.revenue        IS 'added minus subtracted, in units, exact';
COMMENT ON COLUMN tallyline.user_revenue.events         IS 'events counted';
COMMENT ON COLUMN tallyline.user_revenue.updated_at     IS 'when an event was last applied';
COMMENT ON COLUMN tallyline.user_revenue.revenue_micros IS 'the revenue in millionths';

CREATE VIEW tallyline.segment_progress (node, name, state, lines, events, duplicates, rejected, corrupt_lines, applied_bytes, applied_at, reason) AS
SELECT n.name, s.name, s.state, s.lines, s.events, s.duplicates, s.rejected, s.corrupt_lines, s.applied_bytes,
       to_timestamp(s.applied_at_ms / 1000.0),
       s.reason
FROM tallyline.segment AS s
JOIN tallyline.node AS n ON n.node = s.node;
COMMENT ON VIEW   tallyline.segment_progress               IS 'For people: the segments of all nodes. lines = events (counted) + duplicates (of an id that was counted before) + rejected (see rejected_line).';
COMMENT ON COLUMN tallyline.segment_progress.node          IS 'node.name';
COMMENT ON COLUMN tallyline.segment_progress.name          IS 'segment.name';
COMMENT ON COLUMN tallyline.segment_progress.state         IS 'segment.state';
COMMENT ON COLUMN tallyline.segment_progress.lines         IS 'lines in the applied bytes';
COMMENT ON COLUMN tallyline.segment_progress.events        IS 'counted';
COMMENT ON COLUMN tallyline.segment_progress.duplicates    IS 'of an id that was counted before';
COMMENT ON COLUMN tallyline.segment_progress.rejected      IS 'see rejected_line';
COMMENT ON COLUMN tallyline.segment_progress.corrupt_lines IS 'not applied because the file is corrupt';
COMMENT ON COLUMN tallyline.segment_progress.applied_bytes IS 'bytes from the start of the file that are applied';
COMMENT ON COLUMN tallyline.segment_progress.applied_at    IS 'when bytes were last applied';
COMMENT ON COLUMN tallyline.segment_progress.reason        IS 'why the segment is corrupt or missing';

CREATE VIEW tallyline.ledger (node, lines, applied, duplicates, rejected, corrupt) AS
SELECT n.node,
       (coalesce(s.lines + s.corrupt, 0) + coalesce(a.lines + a.corrupt_lines, 0) + coalesce(p.lines, 0))::bigint,
       (coalesce(s.events, 0) + coalesce(a.events, 0) + coalesce(p.events, 0))::bigint,
       (coalesce(s.duplicates, 0) + coalesce(a.duplicates, 0) + coalesce(p.duplicates, 0))::bigint,
       (coalesce(s.rejected, 0) + coalesce(a.rejected, 0) + coalesce(p.rejected, 0))::bigint,
       (coalesce(s.corrupt, 0) + coalesce(a.corrupt_lines, 0))::bigint
FROM tallyline.node AS n
LEFT JOIN tallyline.pruned AS p ON p.node = n.node
LEFT JOIN tallyline.applied_sum AS a ON a.node = n.node
LEFT JOIN (SELECT node, sum(lines) AS lines, sum(events) AS events, sum(duplicates) AS duplicates,
                  sum(rejected) AS rejected, sum(corrupt_lines) AS corrupt
           FROM tallyline.segment
           WHERE state <> 'applied'
           GROUP BY node) AS s ON s.node = n.node;
COMMENT ON VIEW   tallyline.ledger            IS 'For people: all lines that the processor of each node has read, by what happened to them. lines = applied + duplicates + rejected + corrupt.';
COMMENT ON COLUMN tallyline.ledger.node       IS 'node.node';
COMMENT ON COLUMN tallyline.ledger.lines      IS 'all lines that were read';
COMMENT ON COLUMN tallyline.ledger.applied    IS 'counted';
COMMENT ON COLUMN tallyline.ledger.duplicates IS 'of an id that was counted before';
COMMENT ON COLUMN tallyline.ledger.rejected   IS 'see rejected_line';
COMMENT ON COLUMN tallyline.ledger.corrupt    IS 'not applied because the file is corrupt';
