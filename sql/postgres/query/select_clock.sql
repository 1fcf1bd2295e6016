-- If no time was stored yet, the latest time of applying.
SELECT coalesce(n.seen_at_ms,
                (SELECT max(applied_at_ms)
                 FROM (SELECT applied_at_ms FROM tallyline.segment WHERE node = $1 ORDER BY key DESC LIMIT 100) AS s))
FROM tallyline.node AS n
WHERE n.node = $1
