SELECT offset FROM rejected_line WHERE segment = ?1 AND code = 'overflow' AND offset < ?2
