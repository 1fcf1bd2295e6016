SELECT state, count(*) FROM segment WHERE state <> 'whole' GROUP BY state
UNION ALL
SELECT 'whole', segments FROM applied_sum WHERE segments > 0
