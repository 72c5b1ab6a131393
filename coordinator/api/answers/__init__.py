"""The shapes of what the API answers, as the description has them: one class for each object that is told.

Nothing is built out of them: a test holds every answer of all tests against them.
"""
