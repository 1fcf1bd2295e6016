SELECT node FROM tallyline.node WHERE id = $1
