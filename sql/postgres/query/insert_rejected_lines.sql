INSERT INTO tallyline.rejected_line (node, segment, "offset", code, reason, line)
SELECT $1, $2, t."offset", t.code, t.reason, t.line
FROM unnest($3, $4, $5, $6) AS t ("offset", code, reason, line)
ON CONFLICT (node, segment, "offset") DO NOTHING
