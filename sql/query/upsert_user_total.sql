-- Changes nothing if the total might overflow 64 bits (it must be from ?2 to ?3 before). The lines of such
-- a user are applied one by one. The row of parameters may be repeated. count_update() returns its
-- argument and counts the call, so that new users are known (src/store/overall.rs).
INSERT INTO user_total (user_id, revenue_micros, events, updated_at_ms)
VALUES (?4, ?5, ?6, ?1)
ON CONFLICT (user_id) DO UPDATE
SET revenue_micros = revenue_micros + excluded.revenue_micros,
    events = events + count_update(excluded.events),
    updated_at_ms = excluded.updated_at_ms
WHERE revenue_micros BETWEEN ?2 AND ?3
