SELECT lines, applied, duplicates, rejected, corrupt FROM ledger
