-- The number of fully applied segments with a key from ?1 to ?2.
SELECT count(*) FROM segment WHERE key BETWEEN ?1 AND ?2 AND state = 'applied'
