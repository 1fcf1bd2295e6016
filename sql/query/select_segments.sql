SELECT key, name, file_name, state, applied_bytes, checksum, lines, events, duplicates, rejected, net_check,
       id_events, id_net_check, ids_let_go, untrusted_bytes, untrusted_lines, reason, whole_at_ms, tag
FROM segment
ORDER BY key
