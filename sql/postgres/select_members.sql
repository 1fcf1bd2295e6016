SELECT n.node, n.id, n.name, n.state, n.acquired_at_ms,
       l.lines, l.applied, l.duplicates, l.rejected, l.corrupt,
       greatest((extract(epoch FROM now()) * 1000)::bigint - s.seen_at_ms, 0), s.version, coalesce(s.pending_lines, 0),
       coalesce(s.lag_ms, 0), s.reasons
FROM tallyline.node AS n
JOIN tallyline.ledger AS l ON l.node = n.node
LEFT JOIN tallyline.node_status AS s ON s.node = n.node
ORDER BY n.node
