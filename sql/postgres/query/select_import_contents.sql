-- Name, length and checksum of the fully applied imported files that have counted events without an id. Of files with
-- the same content the last one is used: first those of this node, the latest first, then those of other nodes.
SELECT CASE WHEN node = $1 THEN name ELSE name || ' of node ' || node END, applied_bytes, checksum
FROM tallyline.segment
WHERE key < 0 AND state = 'applied' AND events > id_events
ORDER BY node <> $1, key
