UPDATE tallyline.segment
SET completed_at_ms = $4
WHERE node = $1 AND completed_at_ms NOT BETWEEN $2 AND $3
