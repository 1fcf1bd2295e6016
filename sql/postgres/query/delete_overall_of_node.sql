DELETE FROM tallyline.overall WHERE node = $1
