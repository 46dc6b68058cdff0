"""Where records live in etcd: one function per kind of key, and its inverse.

Names are percent-encoded where they hold "/" so that a key splits back unambiguously.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

from mesh.core.types import ModelName, NodeId, Version
from mesh.core.view import VersionKey

_SAFE: Final = " !$&'()*+,;=:@"
_PLAIN: Final = re.compile(rf"[A-Za-z0-9_.~{re.escape(_SAFE)}-]*").fullmatch
"""Matches names that need no encoding: nearly all, and much faster than trying."""

ROOT = "/mesh/v1/"
NODES = ROOT + "nodes/"
COPIES = ROOT + "copies/"
MODELS = ROOT + "models/"
PLACEMENTS = ROOT + "placements/"
PIPELINES = ROOT + "pipelines/"
SUSPECTS = ROOT + "suspects/"
FORECAST = ROOT + "forecast"
LEADER = ROOT + "leader/placement"
HISTORY = ROOT + "history"
"""Holds a random text for as long as the registry keeps its data: with another one, or none, it is another history."""


def node_key(node: NodeId) -> str:
    """Return the key of a node's record."""
    return NODES + _quote(node)


def copies_prefix(node: NodeId) -> str:
    """Return what the keys of a node's copies begin with."""
    return f"{COPIES}{_quote(node)}/"


def copy_key(node: NodeId, key: VersionKey) -> str:
    """Return the key of a copy's record."""
    return f"{COPIES}{_quote(node)}/{_quote(key[0])}/{_quote(key[1])}"


def model_key(name: ModelName, version: Version) -> str:
    """Return the key of a version's record."""
    return f"{MODELS}{_quote(name)}/{_quote(version)}"


def placement_key(name: ModelName, version: Version) -> str:
    """Return the key of a version's placement."""
    return f"{PLACEMENTS}{_quote(name)}/{_quote(version)}"


def suspect_key(name: ModelName, version: Version) -> str:
    """Return the key of what is known of a version that ended processes."""
    return f"{SUSPECTS}{_quote(name)}/{_quote(version)}"


def pipeline_key(name: str) -> str:
    """Return the key of a pipeline."""
    return f"{PIPELINES}{_quote(name)}"


def split_pipeline_key(key: str) -> str:
    """Return the name of a key under PIPELINES. Raises ValueError for any other key."""
    (name,) = _parts(key, PIPELINES, 1)
    return name


def split_node_key(key: str) -> NodeId:
    """Return the node of a node key. Raises ValueError for any other key."""
    (name,) = _parts(key, NODES, 1)
    return NodeId(name)


def split_copy_key(key: str) -> tuple[NodeId, VersionKey]:
    """Return (node, (name, version)) of a key under COPIES. Raises ValueError for any other key."""
    node, name, version = _parts(key, COPIES, 3)
    return NodeId(node), (ModelName(name), Version(version))


def split_model_key(key: str, prefix: str = MODELS) -> tuple[ModelName, Version]:
    """Return (name, version) of a key under MODELS, PLACEMENTS or SUSPECTS. Raises ValueError for any other key."""
    name, version = _parts(key, prefix, 2)
    return ModelName(name), Version(version)


def _quote(text: str) -> str:
    return text if _PLAIN(text) else quote(text, safe=_SAFE)


def _parts(key: str, prefix: str, count: int) -> list[str]:
    parts = key.removeprefix(prefix).split("/")
    if not key.startswith(prefix) or len(parts) != count or not all(parts):
        msg = f"expected a key {prefix} followed by {count} names, got {key!r}"
        raise ValueError(msg)
    return [unquote(part) for part in parts] if "%" in key else parts
