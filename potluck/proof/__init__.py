"""An export of the ledger, checked by whoever doubts it: with the file and the pool's public key, offline."""
