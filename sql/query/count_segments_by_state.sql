SELECT state, count(*) FROM segment WHERE state <> 'applied' GROUP BY state
UNION ALL
SELECT 'applied', segments FROM applied_sum WHERE segments > 0
