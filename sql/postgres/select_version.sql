SELECT version FROM tallyline.cluster
