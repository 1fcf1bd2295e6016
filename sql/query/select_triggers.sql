-- Triggers on tables of ours: the schema has none. A view is no table, and nothing is written to it.
SELECT name, tbl_name FROM sqlite_schema
WHERE type = 'trigger'
  AND tbl_name COLLATE NOCASE IN ('user_total', 'segment', 'rejected_line', 'event_id', 'id_block', 'pruned')
ORDER BY name
