SELECT coalesce(max(key), 0)
FROM tallyline.segment
WHERE node = $1 AND key > 0 AND state <> 'active'
