-- Added up outside: sum() stops at 64 bits, the check figures wrap.
SELECT events, net_check FROM segment
