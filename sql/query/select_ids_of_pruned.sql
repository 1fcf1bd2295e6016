-- The columns are in the order of insert_event_id.sql.
SELECT segment, applied_at_s, id, payload, offset
FROM event_id
WHERE segment NOT IN (SELECT key FROM segment)
ORDER BY id
