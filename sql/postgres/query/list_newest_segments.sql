-- After segment_columns.sql.
FROM (SELECT * FROM (SELECT * FROM tallyline.segment WHERE node = $1 AND key > 0 ORDER BY key DESC LIMIT $2) AS n
      UNION ALL
      SELECT * FROM (SELECT * FROM tallyline.segment WHERE node = $1 AND key < 0 ORDER BY key LIMIT $2) AS i) AS s
ORDER BY state = 'active' DESC, created_at_ms DESC, key DESC
LIMIT $2
