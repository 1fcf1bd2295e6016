SELECT name FROM tallyline.segment WHERE node = $1 AND key < 0 AND state = 'applied'
