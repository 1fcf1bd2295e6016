DELETE FROM tallyline.applied_sum WHERE node = $1
