-- A total that was computed line by line.
INSERT INTO tallyline.user_total AS u (user_id, node, revenue_micros, events, updated_at_ms)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (user_id, node) DO UPDATE
SET revenue_micros = excluded.revenue_micros,
    events = u.events + excluded.events,
    updated_at_ms = excluded.updated_at_ms
RETURNING u.events
