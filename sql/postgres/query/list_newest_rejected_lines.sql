-- A page that begins after the line with $4, $5 and $6.
SELECT r.segment, r."offset", r.code, r.reason, r.line, coalesce(s.applied_at_ms, 0), s.key
FROM tallyline.segment AS s
JOIN tallyline.rejected_line AS r ON r.node = s.node AND r.segment = s.name
WHERE s.node = $1 AND s.rejected > 0
  AND ($2::bigint IS NULL OR s.key > $2 OR s.key = $2 AND r."offset" >= $3)
  AND ($4::bigint IS NULL OR (coalesce(s.applied_at_ms, 0), s.key, r."offset") < ($4, $5, $6))
ORDER BY coalesce(s.applied_at_ms, 0) DESC, s.key DESC, r."offset" DESC
LIMIT $7
