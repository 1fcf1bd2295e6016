-- From version 1 to 2: the labels of imported files. Those that are in the name are stored; others are in the first
-- line of the file only, and such a file is compared by its checksum.
ALTER TABLE tallyline.segment ADD COLUMN label text COLLATE "C";
COMMENT ON COLUMN tallyline.segment.label IS 'of an imported file that is a native segment or a part of one: its number and tag, such as 000042-5e3fa1c29b77d0e4; NULL for all others';
CREATE INDEX segment_label ON tallyline.segment (node, label) WHERE label IS NOT NULL;

UPDATE tallyline.segment
SET label = coalesce(substring(name FROM '^events_segment-([0-9]{6,10}-[0-9a-f]{16})_from-'),
                     substring(name FROM '^events-[0-9]{4}-[0-9-]{5}T[0-9.-]{12}Z-([0-9]{6,10}-[0-9a-f]{16})[-.]'))
WHERE key < 0;

UPDATE tallyline.cluster SET version = 2;
