-- Name, length and checksum of the fully applied imported files that have counted events without an id.
SELECT name, applied_bytes, checksum FROM segment WHERE key < 0 AND state = 'applied' AND events > id_events
