DELETE FROM tallyline.segment WHERE node = $1
