UPDATE tallyline.node SET seen_at_ms = $2 WHERE node = $1
