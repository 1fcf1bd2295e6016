SELECT "offset" FROM tallyline.rejected_line
WHERE node = $1 AND segment = $2 AND code = 'overflow' AND "offset" < $3
