SELECT rejected_line.segment, rejected_line.offset, rejected_line.reason, rejected_line.line
FROM segment
JOIN rejected_line ON rejected_line.segment = segment.name
WHERE segment.rejected > 0
ORDER BY segment.applied_at_ms DESC, segment.key DESC, rejected_line.offset DESC
LIMIT ?1
