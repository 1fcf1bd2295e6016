-- What a failover may have taken back.
SELECT n.epoch, n.token, s.applied_bytes
FROM tallyline.node AS n
LEFT JOIN tallyline.segment AS s ON s.node = n.node AND s.key = $2
WHERE n.node = $1
