"""Decisions about requests: which version, which copy, and whether to try again."""
