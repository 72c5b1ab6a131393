"""Batches: many requests in one file, answered in their own time behind interactive work."""
