"""Makes labelled pairs of product titles: invented products, written the way different shops would write them.

Owns the products, the styles and the rules that make a pair match or not. The pairs are checked in under models/data,
and products of the held-out pairs are in no training pair.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

SEED = 20261120


@dataclass(frozen=True, slots=True)
class Product:
    """One invented product. `amount` and `unit` tell variants of one product apart."""

    brand: str
    kind: str
    code: str
    amount: str
    unit: str
    colour: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two titles, and whether both name the same product in the same variant."""

    left: str
    right: str
    match: bool


def _products(*lines: str) -> tuple[Product, ...]:
    return tuple(Product(*(field.strip() for field in line.split("|"))) for line in lines)


TRAINED = _products(
    "Halvorsen|cordless drill driver|HD-418|18|V|teal",
    "Halvorsen|random orbit sander|HS-125|300|W|teal",
    "Brackwell|electric kettle|BK-170|1.7|l|white",
    "Brackwell|four slice toaster|BT-442|1600|W|cream",
    "Ondrava|trail running shoe|OR-72|270|g|orange",
    "Ondrava|hiking backpack|OB-350|35|l|green",
    "Lumetra|LED desk lamp|LD-90|12|W|black",
    "Lumetra|solar garden light|LG-24|200|lm|steel",
    "Pikobyte|portable solid state drive|PS-3|500|GB|grey",
    "Pikobyte|wireless mouse|PM-610|90|g|blue",
    "Verdano|extra virgin olive oil|VO-1|750|ml|dark",
    "Verdano|balsamic vinegar|VB-6|250|ml|dark",
    "Sorrelle|mechanical keyboard|SK-87|87|keys|silver",
    "Sorrelle|noise cancelling headphones|SH-55|30|h|black",
    "Nordkap|thermal flask|NF-05|500|ml|navy",
    "Nordkap|down sleeping bag|NS-12|1.2|kg|red",
    "Quillon|fountain pen|QF-14|14|cm|burgundy",
    "Quillon|watercolour pencil set|QW-48|48|pieces|mixed",
    "Tessaro|espresso machine|TE-19|19|bar|chrome",
    "Tessaro|burr coffee grinder|TG-40|40|mm|black",
    "Wexcombe|cast iron skillet|WS-26|26|cm|black",
    "Wexcombe|stainless steel saucepan|WP-20|2|l|steel",
    "Amberlyn|memory foam pillow|AP-60|60|cm|white",
    "Amberlyn|weighted blanket|AB-7|7|kg|grey",
    "Kestrick|mountain bike helmet|KH-58|58|cm|yellow",
    "Kestrick|folding bike lock|KL-90|90|cm|black",
    "Dorvale|robot vacuum cleaner|DV-830|2700|Pa|white",
    "Dorvale|air purifier|DA-220|22|dB|white",
    "Fennimore|acoustic guitar strings|FG-12|0.12|mm|bronze",
    "Fennimore|digital metronome|FM-3|85|g|black",
)
HELD_OUT = _products(
    "Ashgrove|hedge trimmer|AT-55|550|W|green",
    "Ashgrove|pruning saw|AS-33|33|cm|orange",
    "Belcanto|bluetooth speaker|BS-20|20|W|coral",
    "Belcanto|turntable|BT-33|33|rpm|walnut",
    "Crestova|insulated lunch box|CL-12|1.2|l|mint",
    "Crestova|bamboo cutting board|CB-40|40|cm|natural",
    "Zephira|ceiling fan|ZF-132|132|cm|white",
    "Zephira|dehumidifier|ZD-16|16|l|white",
    "Murado|climbing rope|MR-98|60|m|blue",
    "Murado|belay device|MB-4|78|g|grey",
    "Oakhelm|standing desk|OD-160|160|cm|oak",
    "Oakhelm|ergonomic office chair|OC-9|120|kg|graphite",
    "Pellworth|ground arabica coffee|PC-7|500|g|brown",
    "Pellworth|loose leaf green tea|PT-2|100|g|green",
    "Rivetta|webcam with microphone|RW-108|1080|p|black",
    "Rivetta|USB docking station|RD-12|100|W|silver",
    "Stellane|refracting telescope|ST-70|70|mm|white",
    "Stellane|birding binoculars|SB-842|42|mm|green",
)

_SHORT = {"cordless": "crdless", "wireless": "wrls", "electric": "elec.", "stainless": "s/s", "portable": "port."}
_METRIC = {"l": ("ml", 1000.0), "kg": ("g", 1000.0), "m": ("cm", 100.0)}
_EXTRAS = ("NEW", "2026 model", "free shipping", "top rated", "original")
_ACCESSORIES = ("replacement part for", "carry case for", "spare kit compatible with")


def make_pairs(products: Sequence[Product]) -> list[Pair]:
    """Return 12 pairs per product, 6 of them matches, in a fixed mixed order. Titles hold no comma, quote or hash."""
    chance = random.Random(SEED)  # noqa: S311 - wants the same pairs every time, no secrecy
    pairs: list[Pair] = []
    for index, product in enumerate(products):
        others = [other for other in products if other is not product]
        sibling = next(other for other in others if other.brand == product.brand)
        stranger = others[(index * 7) % len(others)]
        styles = chance.sample(_STYLES, len(_STYLES))
        left = [style(product, chance) for style in styles]
        pairs += [Pair(left[i], left[(i + 1) % len(left)], match=True) for i in range(len(left))]
        unlike = (
            _other_code(product),
            _other_amount(product, 2.0),
            _other_amount(product, 0.5),
            sibling,
            stranger,
        )
        # Variants differ in the amount alone, so both titles must name it.
        pairs += [
            Pair(chance.choice(_WITH_AMOUNT)(product, chance), chance.choice(_WITH_AMOUNT)(other, chance), match=False)
            for other in unlike
        ]
        accessory = f"{chance.choice(_ACCESSORIES)} {product.brand} {product.code} {product.kind}"
        pairs.append(Pair(_plain(product, chance), accessory, match=False))
    chance.shuffle(pairs)
    return pairs


def _plain(product: Product, _: random.Random) -> str:
    return f"{product.brand} {product.code} {product.kind} {product.amount} {product.unit} {product.colour}"


def _code_last(product: Product, _: random.Random) -> str:
    return f"{product.kind} {product.amount}{product.unit} by {product.brand} - {product.code.replace('-', '')}"


def _shouted(product: Product, chance: random.Random) -> str:
    words = [_SHORT.get(word, word) for word in product.kind.split()]
    title = f"{product.brand} {' '.join(words)} {product.code} {product.amount} {product.unit}"
    return f"{title.upper()} {chance.choice(_EXTRAS)}"


def _typo(product: Product, chance: random.Random) -> str:
    words = product.kind.split()
    longest = max(range(len(words)), key=lambda index: len(words[index]))
    at = chance.randrange(1, len(words[longest]) - 2)
    word = words[longest]
    words[longest] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return f"{product.brand} {' '.join(words)} ({product.code}) {product.amount} {product.unit}"


def _other_units(product: Product, _: random.Random) -> str:
    unit, factor = _METRIC.get(product.unit, (product.unit, 1.0))
    amount = f"{float(product.amount) * factor:g}"
    return f"{product.colour} {product.kind} {product.brand} {product.code} / {amount} {unit}"


def _no_amount(product: Product, chance: random.Random) -> str:
    return f"{product.brand} {product.code} {product.kind} {chance.choice(_EXTRAS)}"


_WITH_AMOUNT: tuple[Callable[[Product, random.Random], str], ...] = (_plain, _code_last, _shouted, _typo, _other_units)
_STYLES = (*_WITH_AMOUNT, _no_amount)


def _other_code(product: Product) -> Product:
    letters, _, number = product.code.partition("-")
    return replace(product, code=f"{letters}-{int(number) + 10}")


def _other_amount(product: Product, factor: float) -> Product:
    return replace(product, amount=f"{float(product.amount) * factor:g}")
