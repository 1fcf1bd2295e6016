-- Segments of any node. They are locked before ids.
SELECT s.key
FROM unnest($1, $2) AS t (node, key)
JOIN tallyline.segment AS s ON s.node = t.node AND s.key = t.key
ORDER BY s.node, s.name
FOR UPDATE OF s
