-- Imported files that a node has applied, if files with their names are in the archive of a new node. Without an event
-- that has no id, a file counts once, whichever nodes have it.
SELECT s.name, n.name, n.id, s.applied_bytes, s.checksum
FROM unnest($1) AS file (name)
JOIN tallyline.segment AS s ON s.name = file.name
JOIN tallyline.node AS n ON n.node = s.node
WHERE s.key < 0 AND s.state = 'applied' AND s.events > s.id_events
