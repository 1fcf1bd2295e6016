SELECT numbers, prefix, width, block, applied_at_s
FROM id_block
ORDER BY prefix, width, block
