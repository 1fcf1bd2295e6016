DELETE FROM tallyline.rejected_line WHERE node = $1
