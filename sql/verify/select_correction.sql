SELECT correction_micros FROM user_check WHERE user_id = ?1
