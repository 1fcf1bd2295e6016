SELECT to_regclass('tallyline.cluster') IS NOT NULL
