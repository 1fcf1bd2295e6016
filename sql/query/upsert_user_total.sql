-- Changes nothing where the total might leave 64 bits (the total must be from ?5 to ?6 before): such a
-- user's lines are then applied one by one.
INSERT INTO user_total (user_id, revenue_micros, events, updated_at_ms)
VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (user_id) DO UPDATE
SET revenue_micros = revenue_micros + excluded.revenue_micros,
    events = events + excluded.events,
    updated_at_ms = excluded.updated_at_ms
WHERE revenue_micros BETWEEN ?5 AND ?6
