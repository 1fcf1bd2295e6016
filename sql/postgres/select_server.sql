SELECT current_setting('server_version_num'), current_setting('server_encoding'),
       current_setting('transaction_read_only') = 'on', pg_is_in_recovery()
