-- How many ids event_id holds of each segment.
SELECT segment, count(*) FROM event_id GROUP BY segment
