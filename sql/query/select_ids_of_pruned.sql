-- In the order of the columns that insert_event_id.sql takes.
SELECT segment, applied_at_s, id, payload, offset
FROM event_id
WHERE segment NOT IN (SELECT key FROM segment)
ORDER BY id
