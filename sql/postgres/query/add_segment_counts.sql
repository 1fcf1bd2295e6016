UPDATE tallyline.segment
SET lines = lines + $3, events = events + $4, duplicates = duplicates + $5, rejected = rejected + $6,
    net_check = $7, id_events = id_events + $8, id_net_check = $9
WHERE node = $1 AND key = $2
