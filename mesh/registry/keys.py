"""Where records live in etcd: one function per kind of key, and its inverse.

Names are percent-encoded where they hold "/" so that a key splits back unambiguously.
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from mesh.core.types import ModelName, NodeId, Version

ROOT = "/mesh/v1/"
NODES = ROOT + "nodes/"
MODELS = ROOT + "models/"
PLACEMENTS = ROOT + "placements/"
FORECAST = ROOT + "forecast"
LEADER = ROOT + "leader/placement"


def node_key(node: NodeId) -> str:
    """Return the key of a node's record."""
    return NODES + _quote(node)


def model_key(name: ModelName, version: Version) -> str:
    """Return the key of a version's record."""
    return f"{MODELS}{_quote(name)}/{_quote(version)}"


def placement_key(name: ModelName, version: Version) -> str:
    """Return the key of a version's placement."""
    return f"{PLACEMENTS}{_quote(name)}/{_quote(version)}"


def split_node_key(key: str) -> NodeId:
    """Return the node of a node key. Raises ValueError for any other key."""
    (name,) = _parts(key, NODES, 1)
    return NodeId(name)


def split_model_key(key: str, prefix: str = MODELS) -> tuple[ModelName, Version]:
    """Return (name, version) of a key under MODELS or PLACEMENTS. Raises ValueError for any other key."""
    name, version = _parts(key, prefix, 2)
    return ModelName(name), Version(version)


def _quote(text: str) -> str:
    return quote(text, safe=" !$&'()*+,;=:@")


def _parts(key: str, prefix: str, count: int) -> list[str]:
    parts = key.removeprefix(prefix).split("/")
    if not key.startswith(prefix) or len(parts) != count or not all(parts):
        msg = f"expected a key {prefix} followed by {count} names, got {key!r}"
        raise ValueError(msg)
    return [unquote(part) for part in parts]
