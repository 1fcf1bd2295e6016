SELECT n.node, n.id, n.name, n.state, n.acquired_at_ms,
       l.lines, l.applied, l.duplicates, l.rejected, l.corrupt,
       -- greatest() skips NULL, and a node that has never reported has no age.
       CASE WHEN s.node IS NOT NULL THEN greatest((extract(epoch FROM now()) * 1000)::bigint - s.seen_at_ms, 0) END,
       s.version, coalesce(s.pending_lines, 0),
       coalesce(s.lag_ms, 0), s.reasons, coalesce(o.users, 0), coalesce(o.revenue_micros, 0)::text, o.updated_at_ms
FROM tallyline.node AS n
JOIN tallyline.ledger AS l ON l.node = n.node
LEFT JOIN tallyline.node_status AS s ON s.node = n.node
LEFT JOIN tallyline.overall AS o ON o.node = n.node
ORDER BY n.node
