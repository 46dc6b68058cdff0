"""Numbers that look random and follow from where they are: the same on every copy that goes on with a generation."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def drawn(seed: int, position: int) -> float:
    """Return a number in [0, 1): the `position`-th of `seed`. O(1).

    SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014), whose n-th number needs
    none of those before it.
    """
    mixed = (seed * 0xD1342543DE82EF95 + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ mixed >> 31) >> 11) / (1 << 53)
