DELETE FROM tallyline.id_block AS b
USING unnest($1, $2, $3) AS t (prefix, width, block)
WHERE b.prefix = t.prefix AND b.width = t.width AND b.block = t.block AND length(b.numbers) = 0
