SELECT user_id, database_micros, database_events, correction_micros, correction_events
FROM user_check
ORDER BY user_id
