-- The beginning of each statement that reads rows of segments: the columns in the order in which
-- src/store/segments.rs reads them.
SELECT key, name, file_name, state, applied_bytes, checksum, lines, events, duplicates, rejected, net_check,
       id_events, id_net_check, ids_expired, corrupt_bytes, corrupt_lines, reason, completed_at_ms, tag
FROM segment
