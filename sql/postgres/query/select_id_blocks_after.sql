SELECT numbers, prefix, width, block, applied_at_s
FROM tallyline.id_block
WHERE (prefix, width, block) > ($1, $2, $3)
ORDER BY prefix, width, block
LIMIT $4
