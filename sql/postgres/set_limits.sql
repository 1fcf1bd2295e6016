-- Limits that the role or the server may have set too low for a large transaction.
SET LOCAL statement_timeout = '10min';
SET LOCAL lock_timeout = '1min';
SET LOCAL idle_in_transaction_session_timeout = '5min';
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';
