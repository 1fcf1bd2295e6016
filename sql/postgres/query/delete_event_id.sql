-- An id that this transaction has inserted, and whose event is rejected.
DELETE FROM tallyline.event_id WHERE id = $1 AND node = $2 AND segment = $3 AND "offset" = $4
