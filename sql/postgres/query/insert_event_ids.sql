-- The ids of one or several segments. The rows are sorted by id, so that two nodes with the same ids wait for each
-- other in one direction only; of equal ids the first is inserted.
INSERT INTO tallyline.event_id (id, payload, node, segment, "offset", applied_at_s)
SELECT t.id, t.payload, $1, t.segment, t."offset", $2
FROM unnest($3, $4, $5, $6) AS t (id, payload, segment, "offset")
ON CONFLICT (id) DO NOTHING
