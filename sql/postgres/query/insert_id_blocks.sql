-- Locks the rows that exist already, and does not change them. The rows are sorted by key, so that two nodes
-- with the same blocks wait for each other in one direction only.
INSERT INTO tallyline.id_block AS b (prefix, width, block, numbers, applied_at_s)
SELECT t.prefix, t.width, t.block, t.numbers, $1
FROM unnest($2, $3, $4, $5) AS t (prefix, width, block, numbers)
ON CONFLICT (prefix, width, block) DO UPDATE SET numbers = b.numbers WHERE false
RETURNING prefix, width, block
