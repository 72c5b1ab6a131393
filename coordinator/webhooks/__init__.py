"""Webhooks: what happened in the pool, told to a member's own server, signed and tried again."""
