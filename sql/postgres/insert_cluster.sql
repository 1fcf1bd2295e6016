INSERT INTO tallyline.cluster (one, version, id) VALUES (1, $1, $2)
