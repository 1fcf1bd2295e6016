-- A native segment that a node has read, if a file with its tag is among those of a new node.
SELECT s.name, n.name, n.id
FROM unnest($1) AS file (tag)
JOIN tallyline.segment AS s ON s.tag = file.tag
JOIN tallyline.node AS n ON n.node = s.node
LIMIT 1
