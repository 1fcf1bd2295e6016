-- From version 5 to 6: the labels of imported files. Those that are in the name are stored. The others are only in the
-- first line of the file, and stored by the next rebuild; until then a second file of the same segment is not
-- recognised where it is dropped in, and `process FILE` compares such a file by its checksum.
ALTER TABLE segment ADD COLUMN label TEXT; -- of an imported file that is a native segment or a part of one: its number and tag, such as 000042-5e3fa1c29b77d0e4; NULL for all others
CREATE INDEX segment_label ON segment (label) WHERE label IS NOT NULL;

-- events_segment-000042-5e3fa1c29b77d0e4_from-1834-9ae0daaf_to-2310-1c291ca3.jsonl
UPDATE segment SET label = substr(name, 16, instr(name, '_from-') - 16)
WHERE key < 0 AND name GLOB 'events_segment-[0-9][0-9][0-9][0-9][0-9][0-9]*-*_from-*_to-*.jsonl';
-- events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4-2310-1c291ca3.jsonl: the number begins at byte 33.
UPDATE segment SET label = substr(name, 33, instr(substr(name, 33), '-') + 16)
WHERE key < 0 AND name GLOB 'events-????-??-??T??-??-??.???Z-[0-9][0-9][0-9][0-9][0-9][0-9]*-????????????????*.jsonl';

PRAGMA user_version = 6;
