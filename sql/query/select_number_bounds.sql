-- The lowest and the highest number of ours, and how many there are. Without reading the rows of years.
SELECT coalesce((SELECT min(key) FROM segment WHERE key > 0), 0),
       coalesce((SELECT max(key) FROM segment WHERE key > 0), 0),
       (SELECT native FROM applied_sum) + (SELECT count(*) FROM segment WHERE state <> 'whole' AND key > 0)
