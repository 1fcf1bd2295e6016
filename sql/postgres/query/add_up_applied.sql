-- The values that applied_sum must have. Reads every row.
SELECT count(*), count(*) FILTER (WHERE key > 0), coalesce(sum(lines), 0)::bigint, coalesce(sum(events), 0)::bigint,
       coalesce(sum(duplicates), 0)::bigint, coalesce(sum(rejected), 0)::bigint,
       coalesce(sum(corrupt_lines), 0)::bigint
FROM tallyline.segment
WHERE node = $1 AND state = 'applied'
