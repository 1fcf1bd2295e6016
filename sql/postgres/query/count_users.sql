SELECT count(*) FROM (SELECT FROM tallyline.user_total GROUP BY user_id) AS u
