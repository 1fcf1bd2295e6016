UPDATE directory SET uuid = ?1
