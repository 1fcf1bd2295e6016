UPDATE directory SET last_import_key = last_import_key - 1 RETURNING last_import_key
