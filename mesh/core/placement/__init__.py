"""Decisions about copies: which node should hold what."""
