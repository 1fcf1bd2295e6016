SELECT coalesce(max(key), 0) FROM segment WHERE key > 0 AND state <> 'active'
