-- Changes nothing if the total might overflow 64 bits (it must be from $3 to $4 before). The lines of such
-- a user are applied one by one. Returns how many rows were written, and how many of them are new: only in
-- these the events are the added ones.
WITH t AS (
    SELECT * FROM unnest($5, $6, $7) AS t (user_id, micros, events)
), written AS (
    INSERT INTO tallyline.user_total AS u (user_id, node, revenue_micros, events, updated_at_ms)
    SELECT t.user_id, $1, t.micros, t.events, $2
    FROM t
    ON CONFLICT (user_id, node) DO UPDATE
    SET revenue_micros = u.revenue_micros + excluded.revenue_micros,
        events = u.events + excluded.events,
        updated_at_ms = excluded.updated_at_ms
    WHERE u.revenue_micros BETWEEN $3 AND $4
    RETURNING u.user_id, u.events
)
SELECT count(*), count(*) FILTER (WHERE written.events = t.events)
FROM written
JOIN t ON t.user_id = written.user_id
