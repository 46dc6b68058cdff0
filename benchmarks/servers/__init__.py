"""Scripts that run in processes of their own: servers and proxies made for the comparison, and models for peers."""
