SELECT id FROM tallyline.cluster
