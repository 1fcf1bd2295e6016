INSERT INTO rejected_line (segment, offset, code, reason, line)
VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (segment, offset) DO NOTHING
