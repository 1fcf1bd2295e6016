-- The applied bytes of each segment, and how many ids of it are kept.
SELECT key, applied_bytes, id_events - ids_expired FROM segment
