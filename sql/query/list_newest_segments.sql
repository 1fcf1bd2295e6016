SELECT key, name, file_name, state, applied_bytes, checksum, lines, events, duplicates, rejected, net_check,
       id_events, id_net_check, ids_expired, corrupt_bytes, corrupt_lines, reason, completed_at_ms, tag
FROM (SELECT * FROM (SELECT * FROM segment WHERE key > 0 ORDER BY key DESC LIMIT ?1)
      UNION ALL
      SELECT * FROM (SELECT * FROM segment WHERE key < 0 ORDER BY key LIMIT ?1))
ORDER BY state = 'active' DESC, created_at_ms DESC, key DESC
LIMIT ?1
