INSERT INTO tallyline.overall AS o (node, users, events, revenue_micros, updated_at_ms)
VALUES ($1, $2, $3, $4::numeric, $5)
ON CONFLICT (node) DO UPDATE
SET users = o.users + excluded.users, events = o.events + excluded.events,
    revenue_micros = o.revenue_micros + excluded.revenue_micros, updated_at_ms = excluded.updated_at_ms
RETURNING o.users, o.events, o.revenue_micros::text, o.updated_at_ms
