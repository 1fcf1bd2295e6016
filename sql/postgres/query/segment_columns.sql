-- The columns of a row of a segment, in the order in which src/store/postgres/convert.rs reads them. After SELECT or
-- RETURNING.
key, name, file_name, state, applied_bytes, checksum, lines, events, duplicates, rejected, net_check,
       id_events, id_net_check, ids_expired, corrupt_bytes, corrupt_lines, reason, completed_at_ms, tag
