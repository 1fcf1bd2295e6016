-- Only those that are unchanged since they were read, and are still old.
DELETE FROM tallyline.event_id AS e
USING unnest($1, $2, $3) AS t (id, node, segment)
WHERE e.id = t.id AND e.node = t.node AND e.segment = t.segment AND e.applied_at_s < $4
RETURNING e.node, e.segment
