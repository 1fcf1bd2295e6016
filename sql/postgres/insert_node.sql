-- After lock_cluster, so that no other node gets the number. Inserts nothing if another transaction registered the
-- node meanwhile.
INSERT INTO tallyline.node (node, id, name, state, epoch, token, created_at_ms, acquired_at_ms)
SELECT (SELECT coalesce(max(node), 0) + 1 FROM tallyline.node), $1, $2, 'member', $3, $4, now_ms, now_ms
FROM (SELECT (extract(epoch FROM now()) * 1000)::bigint AS now_ms) AS clock
ON CONFLICT DO NOTHING
RETURNING node
