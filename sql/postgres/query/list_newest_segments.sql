SELECT key, name, file_name, state, applied_bytes, checksum, lines, events, duplicates, rejected, net_check,
       id_events, id_net_check, ids_expired, corrupt_bytes, corrupt_lines, reason, completed_at_ms, tag
FROM (SELECT * FROM (SELECT * FROM tallyline.segment WHERE node = $1 AND key > 0 ORDER BY key DESC LIMIT $2) AS n
      UNION ALL
      SELECT * FROM (SELECT * FROM tallyline.segment WHERE node = $1 AND key < 0 ORDER BY key LIMIT $2) AS i) AS s
ORDER BY state = 'active' DESC, created_at_ms DESC, key DESC
LIMIT $2
