-- The values that applied_sum must have. Reads every row.
SELECT count(*), count(number), coalesce(sum(lines), 0), coalesce(sum(events), 0), coalesce(sum(duplicates), 0),
       coalesce(sum(rejected), 0), coalesce(sum(corrupt_lines), 0)
FROM segment
WHERE state = 'applied'
