-- Only those that are still old.
WITH old AS (
    SELECT id FROM tallyline.event_id WHERE id = ANY ($1) AND applied_at_s < $2 ORDER BY id FOR UPDATE
)
DELETE FROM tallyline.event_id AS e USING old WHERE e.id = old.id
RETURNING e.node, e.segment
