-- A rebuild locks rows in the order of its files, so it must not meet another transaction that has locked some. It
-- waits for those that run, and others wait for it; readers do not.
LOCK TABLE tallyline.segment, tallyline.event_id, tallyline.id_block IN EXCLUSIVE MODE
