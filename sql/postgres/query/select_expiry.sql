-- The longest deduplication window of all nodes, NULL if a node keeps its ids for ever; the time of the
-- database; and the nodes that were removed.
SELECT CASE WHEN bool_and(keep_ids_ms IS NOT NULL) FILTER (WHERE state = 'member')
            THEN max(keep_ids_ms) FILTER (WHERE state = 'member') END,
       floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint,
       coalesce(array_agg(node) FILTER (WHERE state = 'removed'), '{}')
FROM tallyline.node
