UPDATE tallyline.segment AS s
SET ids_expired = s.ids_expired + t.count
FROM unnest($1, $2, $3) AS t (node, key, count)
WHERE s.node = t.node AND s.key = t.key
