"""The servers and proxies that are compared, each started as its users start it."""
