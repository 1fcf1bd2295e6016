-- From version 1 to 2: the labels of imported files. Those that are in the name are stored. The others are only in the
-- first line of the file, and stored by the next rebuild; until then a second file of the same segment is not
-- recognised where it is dropped in, and `process FILE` compares such a file by its checksum.
ALTER TABLE tallyline.segment ADD COLUMN label text COLLATE "C";
COMMENT ON COLUMN tallyline.segment.label IS 'of an imported file that is a native segment or a part of one: its number and tag, such as 000042-5e3fa1c29b77d0e4; NULL for all others';
CREATE INDEX segment_label ON tallyline.segment (node, label) WHERE label IS NOT NULL;

UPDATE tallyline.segment
SET label = coalesce(substring(name FROM '^events_segment-([0-9]{6,10}-[0-9a-f]{16})_from-'),
                     substring(name FROM '^events-[0-9]{4}-[0-9-]{5}T[0-9.-]{12}Z-([0-9]{6,10}-[0-9a-f]{16})[-.]'))
WHERE key < 0;

UPDATE tallyline.cluster SET version = 2;
