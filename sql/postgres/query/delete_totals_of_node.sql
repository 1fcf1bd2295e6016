DELETE FROM tallyline.user_total WHERE node = $1
