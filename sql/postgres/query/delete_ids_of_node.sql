-- Those of pruned segments, which have no row, are kept.
DELETE FROM tallyline.event_id AS e
USING tallyline.segment AS s
WHERE e.node = $1 AND s.node = $1 AND s.key = e.segment
