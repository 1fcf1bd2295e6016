-- The lowest and the highest number of native segments, and their count, without reading all rows.
SELECT coalesce((SELECT min(key) FROM segment WHERE key > 0), 0),
       coalesce((SELECT max(key) FROM segment WHERE key > 0), 0),
       (SELECT native FROM applied_sum) + (SELECT count(*) FROM segment WHERE state <> 'applied' AND key > 0)
