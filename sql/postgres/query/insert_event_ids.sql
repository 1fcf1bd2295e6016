-- The rows are sorted by id, so that two nodes with the same ids wait for each other in one direction only.
INSERT INTO tallyline.event_id (id, payload, node, segment, "offset", applied_at_s)
SELECT t.id, t.payload, $1, $2, t."offset", $3
FROM unnest($4, $5, $6) AS t (id, payload, "offset")
ON CONFLICT (id) DO NOTHING
