-- The imported files with this label, and what is applied of them.
SELECT name, applied_bytes, checksum FROM segment WHERE label = ?1 AND applied_bytes > 0
