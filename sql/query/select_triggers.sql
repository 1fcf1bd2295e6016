-- Triggers on the tables of the schema, which has none itself. Triggers on views do not matter, because
-- the program writes to tables only.
SELECT name, tbl_name FROM sqlite_schema
WHERE type = 'trigger'
  AND tbl_name COLLATE NOCASE IN ('user_total', 'segment', 'rejected_line', 'event_id', 'id_block', 'pruned')
ORDER BY name
