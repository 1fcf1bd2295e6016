SELECT state, count(*) FROM segment GROUP BY state
