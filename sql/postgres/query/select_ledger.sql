SELECT lines, applied, duplicates, rejected, corrupt FROM tallyline.ledger WHERE node = $1
