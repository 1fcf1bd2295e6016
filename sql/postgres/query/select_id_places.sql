SELECT segment, "offset" FROM tallyline.event_id WHERE node = $1
