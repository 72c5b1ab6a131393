"""Tuned models: adapters that the pool has trained, served on top of their base under names of their own."""
