SELECT lines, applied, duplicates, rejected, untrusted FROM ledger
