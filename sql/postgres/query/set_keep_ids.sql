UPDATE tallyline.node SET keep_ids_ms = $2 WHERE node = $1 AND keep_ids_ms IS DISTINCT FROM $2
