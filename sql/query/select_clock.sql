-- If no time was stored yet, the latest time of applying.
SELECT coalesce(seen_at_ms, (SELECT max(applied_at_ms)
                             FROM (SELECT applied_at_ms FROM segment ORDER BY key DESC LIMIT 100)))
FROM clock
