UPDATE tallyline.node SET last_import_key = last_import_key - 1 WHERE node = $1 RETURNING last_import_key
