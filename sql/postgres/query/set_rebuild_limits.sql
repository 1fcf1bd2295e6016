-- A rebuild applies all files in one transaction, and reads them in between. It may wait for another rebuild.
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = '1h';
SET LOCAL idle_in_transaction_session_timeout = 0
