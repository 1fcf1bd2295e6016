SELECT rejected_line.segment, rejected_line.offset, rejected_line.code, rejected_line.reason, rejected_line.line
FROM segment
JOIN rejected_line ON rejected_line.segment = segment.name
WHERE segment.rejected > 0
  AND (?2 IS NULL OR segment.key > ?2 OR segment.key = ?2 AND rejected_line.offset >= ?5)
  -- A line that was cut is not valid JSON; `send` writes the id at the start of the line.
  AND (?3 IS NULL
       OR substr(CASE WHEN json_valid(rejected_line.line) THEN json_extract(rejected_line.line, '$.id') END, 1, length(?3)) = ?3
       OR substr(rejected_line.line, 1, length(?4)) = ?4)
ORDER BY segment.applied_at_ms DESC, segment.key DESC, rejected_line.offset DESC
LIMIT ?1
