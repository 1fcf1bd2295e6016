UPDATE tallyline.node
SET epoch = $2, token = $3, name = $4, acquired_at_ms = (extract(epoch FROM now()) * 1000)::bigint
WHERE node = $1
