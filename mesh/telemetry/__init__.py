"""Logs, metrics and traces: the three ways a running mesh says what it does."""
