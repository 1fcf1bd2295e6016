UPDATE tallyline.id_block AS b
SET numbers = t.numbers
FROM unnest($1, $2, $3, $4) AS t (prefix, width, block, numbers)
WHERE b.prefix = t.prefix AND b.width = t.width AND b.block = t.block
