UPDATE segment
SET lines = lines + ?2, events = events + ?3, duplicates = duplicates + ?4, rejected = rejected + ?5,
    net_check = ?6, id_events = id_events + ?7, id_net_check = ?8
WHERE key = ?1
