-- Segments of which event_id does not hold as many ids as they counted and still keep.
SELECT count(*)
FROM segment
LEFT JOIN (SELECT segment AS of, count(*) AS ids FROM event_id GROUP BY segment) AS kept ON kept.of = segment.key
WHERE coalesce(kept.ids, 0) <> segment.id_events - segment.ids_expired
