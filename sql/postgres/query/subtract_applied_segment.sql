-- Subtracts a fully applied segment, before its row is deleted.
UPDATE tallyline.applied_sum AS a
SET segments = a.segments - 1, native = a.native - (s.key > 0)::integer, lines = a.lines - s.lines,
    events = a.events - s.events, duplicates = a.duplicates - s.duplicates, rejected = a.rejected - s.rejected,
    corrupt_lines = a.corrupt_lines - s.corrupt_lines
FROM tallyline.segment AS s
WHERE s.node = $1 AND s.key = $2 AND s.state = 'applied' AND a.node = s.node
