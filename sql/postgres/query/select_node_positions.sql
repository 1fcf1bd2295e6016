-- For each position of a node: the state of the node, whether the segment is pruned, the state and the applied bytes
-- of the segment, and whether an earlier one is not fully applied.
SELECT n.state, coalesce(p.number >= t.segment, false), s.state, s.applied_bytes,
       EXISTS (SELECT FROM tallyline.segment AS e
               WHERE e.node = n.node AND e.key > 0 AND e.key < t.segment AND e.state IN ('active', 'sealed'))
FROM unnest($1, $2) WITH ORDINALITY AS t (id, segment, at)
LEFT JOIN tallyline.node AS n ON n.id = t.id
LEFT JOIN tallyline.segment AS s ON s.node = n.node AND s.key = t.segment
LEFT JOIN tallyline.pruned AS p ON p.node = n.node
ORDER BY t.at
