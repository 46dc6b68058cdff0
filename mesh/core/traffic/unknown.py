"""What to say about a name that no model has: why its folder is not served, or which name was meant."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import chain, islice
from typing import Final

from mesh.core.errors import UnknownModel
from mesh.core.view import ClusterView

LOOKED_AT: Final = 2000
"""Names that are compared: anybody may ask for what is not there, as often as they like."""

NEAR: Final = 16
"""Names of those that are compared with care, a few microseconds each."""


def unknown(view: ClusterView, name: str, version: str = "") -> UnknownModel:
    """Return the error for a name, or a version of it, that is not there. O(nodes + `LOOKED_AT`).

    It begins as Triton's text does, because clients match on that.
    """
    of = f" version {version}" if version else ""
    return UnknownModel(f"Request for unknown model: '{name}'{of} is not found{hint(view, name, version)}")


def hint(view: ClusterView, name: str, version: str = "") -> str:
    """Return what helps a caller who asked for what is not there, to be put after a sentence; often empty."""
    if not name:
        return ""
    told = refusals(view, name)
    why = told.get(f"{name}/{version}") or told.get(name) or ("" if version else "; ".join(told.values()))
    if why:
        return f": its folder cannot be served: {why}"
    near = "" if version else _near(view, name)
    return f"; did you mean '{near}'?" if near else ""


def refusals(view: ClusterView, name: str = "") -> dict[str, str]:
    """Return the folders that nodes cannot serve, those of model `name` alone if given: label -> why, and where."""
    found: dict[str, dict[str, list[str]]] = {}
    for id_ in sorted(view.nodes):
        for label, why in view.nodes[id_].refused.items():
            if not name or label.partition("/")[0] == name:
                found.setdefault(label, {}).setdefault(why, []).append(id_)
    return {
        label: "; ".join(f"{why} (node {', '.join(ids)})" for why, ids in whys.items()) for label, whys in found.items()
    }


def _near(view: ClusterView, name: str) -> str:
    folded = name.casefold()
    alike = (each for each in islice(_names(view), LOOKED_AT) if _may_be_meant(each, folded))
    by_folded = {each.casefold(): each for each in islice(alike, NEAR)}
    found = get_close_matches(folded, by_folded, n=1, cutoff=0.75)
    return by_folded[found[0]] if found else ""


def _names(view: ClusterView) -> Iterator[str]:
    refused = (label.partition("/")[0] for node in view.nodes.values() for label in node.refused)
    return chain(refused, view.pipelines, view.models)


def _may_be_meant(name: str, folded: str) -> bool:
    """Tell whether a name is about as long and begins or ends as what was asked for: a typo leaves one of them."""
    if abs(len(name) - len(folded)) > 2:
        return False
    other = name.casefold()
    return other[:2] == folded[:2] or other[-2:] == folded[-2:]
