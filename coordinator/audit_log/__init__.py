"""The audit log: who changed what of the pool, when, and with which key."""
