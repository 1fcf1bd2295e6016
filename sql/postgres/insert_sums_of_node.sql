WITH pruned AS (INSERT INTO tallyline.pruned (node) VALUES ($1) ON CONFLICT DO NOTHING)
INSERT INTO tallyline.applied_sum (node) VALUES ($1) ON CONFLICT DO NOTHING
