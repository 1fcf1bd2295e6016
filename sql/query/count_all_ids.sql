-- The stored number of ids, and how many event_id has. Those of id_block are in its rows.
SELECT ids, (SELECT count(*) FROM event_id) FROM overall
