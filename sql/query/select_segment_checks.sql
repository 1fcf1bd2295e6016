-- The program adds the rows up: sum() fails past 64 bits, and net_check is modulo 2^64.
SELECT events, net_check FROM segment
