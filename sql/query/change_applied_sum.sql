-- Adds (?2 = 1) or subtracts (?2 = -1) a fully applied segment.
UPDATE applied_sum
SET segments = segments + ?2, native = native + ?2 * (s.key > 0), lines = applied_sum.lines + ?2 * s.lines,
    events = applied_sum.events + ?2 * s.events, duplicates = applied_sum.duplicates + ?2 * s.duplicates,
    rejected = applied_sum.rejected + ?2 * s.rejected,
    corrupt_lines = applied_sum.corrupt_lines + ?2 * s.corrupt_lines
FROM segment AS s
WHERE s.key = ?1 AND s.state = 'applied'
