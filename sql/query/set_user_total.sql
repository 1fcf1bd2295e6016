-- A total that was computed line by line. count_update(): see upsert_user_total.sql.
INSERT INTO user_total (user_id, revenue_micros, events, updated_at_ms)
VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (user_id) DO UPDATE
SET revenue_micros = excluded.revenue_micros,
    events = events + count_update(excluded.events),
    updated_at_ms = excluded.updated_at_ms
