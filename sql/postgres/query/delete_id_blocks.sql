-- Only those that are unchanged since they were read.
DELETE FROM tallyline.id_block AS b
USING unnest($1, $2, $3, $4) WITH ORDINALITY AS t (prefix, width, block, numbers, at)
WHERE b.prefix = t.prefix AND b.width = t.width AND b.block = t.block AND b.numbers = t.numbers
  AND b.applied_at_s < $5
RETURNING t.at
