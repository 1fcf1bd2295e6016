SELECT numbers, prefix, width, block, applied_at_s
FROM tallyline.id_block
ORDER BY prefix, width, block
