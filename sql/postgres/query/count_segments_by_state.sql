SELECT state, count(*) FROM tallyline.segment WHERE node = $1 AND state <> 'applied' GROUP BY state
UNION ALL
SELECT 'applied', segments FROM tallyline.applied_sum WHERE node = $1 AND segments > 0
