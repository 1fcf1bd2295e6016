WITH undated AS (
    SELECT key FROM tallyline.segment
    WHERE node = $1 AND completed_at_ms NOT BETWEEN $2 AND $3
    ORDER BY name
    FOR UPDATE
)
UPDATE tallyline.segment AS s
SET completed_at_ms = $4
FROM undated
WHERE s.node = $1 AND s.key = undated.key
