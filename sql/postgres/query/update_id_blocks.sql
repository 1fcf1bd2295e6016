-- The newest time of applying counts.
UPDATE tallyline.id_block AS b
SET numbers = t.numbers, applied_at_s = CASE WHEN t.counted THEN greatest(b.applied_at_s, $1) ELSE b.applied_at_s END
FROM unnest($2, $3, $4, $5, $6) AS t (prefix, width, block, numbers, counted)
WHERE b.prefix = t.prefix AND b.width = t.width AND b.block = t.block
