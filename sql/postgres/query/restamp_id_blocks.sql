UPDATE tallyline.id_block AS b
SET applied_at_s = $4
FROM unnest($1, $2, $3) AS t (prefix, width, block)
WHERE b.prefix = t.prefix AND b.width = t.width AND b.block = t.block
