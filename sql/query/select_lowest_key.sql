SELECT min(0, coalesce(min(key), 0)) FROM segment
