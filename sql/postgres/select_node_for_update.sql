SELECT node, state, epoch, token, name FROM tallyline.node WHERE id = $1 FOR UPDATE
