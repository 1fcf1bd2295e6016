SELECT t.at, b.numbers
FROM unnest($1, $2, $3) WITH ORDINALITY AS t (prefix, width, block, at)
JOIN tallyline.id_block AS b ON b.prefix = t.prefix AND b.width = t.width AND b.block = t.block
