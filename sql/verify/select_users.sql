SELECT user_id, database_micros, database_events, files_micros, files_events
FROM user_check
WHERE database_micros <> files_micros OR database_events <> files_events
ORDER BY user_id
