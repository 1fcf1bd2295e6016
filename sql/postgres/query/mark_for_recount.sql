-- Segments whose duplicates may have been duplicates of ids that were released.
UPDATE tallyline.segment SET recount = true WHERE node <> $1 AND duplicates > 0
