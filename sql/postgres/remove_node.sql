-- Waits for transactions of the node. The rows of its totals, segments and ids stay.
UPDATE tallyline.node
SET state = 'removed', epoch = epoch + 1, token = $2, acquired_at_ms = (extract(epoch FROM now()) * 1000)::bigint
WHERE node = $1 AND state = 'member'
