"""The tables that show figures, as aligned text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import Figures
from mesh.cli.tables import table as plain_table

HEADER = ("server", "requests/s", "spread", "CPU µs/request", "busy")
LATENCY = ("median µs", "added µs")
MEMORY = ("KB per request in flight",)


def table(found: dict[str, Figures], base_key: str, direct_key: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and a row per peer.

    Rate and CPU also stand as ratios to the peer `base_key`, "-" where it was not measured; latency is added to that
    of `direct_key`.
    """
    base = f" to {found[base_key].peer}" if base_key in found else ""
    header: tuple[str, ...] = (*HEADER, f"rate{base}", f"CPU{base}")
    made: list[tuple[str, ...]] = rows(found, base_key)
    if any(each.latencies_us for each in found.values()):
        header = (*header, *LATENCY)
        direct = found.get(direct_key)
        made = [(*row, *_latency(each, direct)) for row, each in zip(made, found.values(), strict=True)]
    if any(each.memory_kb for each in found.values()):
        header = (*header, *MEMORY)
        made = [(*row, f"{each.memory():,.0f}") for row, each in zip(made, found.values(), strict=True)]
    return header, made


def rows(found: dict[str, Figures], base_key: str) -> list[tuple[str, ...]]:
    """Return a row of `HEADER`'s columns and the two ratios per peer."""
    base = found.get(base_key)
    made: list[tuple[str, ...]] = []
    for each in found.values():
        parts = f" ({each.parts()})" if each.parts() else ""
        ratios = (f"{each.rate() / base.rate():.2f}x", f"{each.cpu() / base.cpu():.2f}x") if base else ("-", "-")
        spread = f"±{each.spread():.0%}"
        made.append(
            (each.peer, f"{each.rate():,.0f}", spread, f"{each.cpu():,.0f}{parts}", f"{each.busy():.0%}", *ratios)
        )
    return made


def _latency(each: Figures, direct: Figures | None) -> tuple[str, str]:
    added = f"{each.latency() - direct.latency():,.0f}" if direct is not None and direct is not each else "-"
    return f"{each.latency():,.0f}", added


def text(title: str, header: Sequence[str], made: Sequence[Sequence[str]]) -> str:
    """Return a table as aligned columns."""
    return f"{title}\n{plain_table(tuple(header), [tuple(row) for row in made])}"


def markdown(title: str, header: Sequence[str], made: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *made]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(cells)} |" for cells in lines)])
