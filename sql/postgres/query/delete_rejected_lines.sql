DELETE FROM tallyline.rejected_line WHERE node = $1 AND segment = $2
