"""Signing in to the dashboard at an OpenID provider: who it says somebody is, and which member that is."""
