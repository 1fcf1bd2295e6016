-- By node, how many of its segments must be counted again.
SELECT n.name, n.id::text, count(*)
FROM tallyline.segment AS s
JOIN tallyline.node AS n ON n.node = s.node
WHERE s.recount
GROUP BY n.node, n.name, n.id
ORDER BY n.node
