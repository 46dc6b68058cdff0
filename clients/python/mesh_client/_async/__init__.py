"""The source of both clients. `_sync` is generated from it by scripts/gen_sync_client.py."""
