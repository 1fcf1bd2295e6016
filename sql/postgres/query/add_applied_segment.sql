INSERT INTO tallyline.applied_sum AS a (node, segments, native, lines, events, duplicates, rejected, corrupt_lines)
SELECT s.node, 1, (s.key > 0)::integer, s.lines, s.events, s.duplicates, s.rejected, s.corrupt_lines
FROM tallyline.segment AS s
WHERE s.node = $1 AND s.key = $2 AND s.state = 'applied'
ON CONFLICT (node) DO UPDATE
SET segments = a.segments + excluded.segments, native = a.native + excluded.native, lines = a.lines + excluded.lines,
    events = a.events + excluded.events, duplicates = a.duplicates + excluded.duplicates,
    rejected = a.rejected + excluded.rejected, corrupt_lines = a.corrupt_lines + excluded.corrupt_lines
