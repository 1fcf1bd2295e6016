INSERT INTO tallyline.node_status (node, seen_at_ms, version, pending_lines, lag_ms, reasons)
VALUES ($1, (extract(epoch FROM now()) * 1000)::bigint, $2, $3, $4, $5)
ON CONFLICT (node) DO UPDATE
SET seen_at_ms = excluded.seen_at_ms, version = excluded.version, pending_lines = excluded.pending_lines,
    lag_ms = excluded.lag_ms, reasons = excluded.reasons
