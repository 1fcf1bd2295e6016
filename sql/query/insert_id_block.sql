-- The row of parameters may be there many times.
INSERT INTO id_block (prefix, width, block, numbers, applied_at_s)
VALUES (?2, ?3, ?4, ?5, ?1)
ON CONFLICT (prefix, width, block) DO NOTHING
