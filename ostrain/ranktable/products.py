"""What differs between generations of Ascend servers, as far as rank tables know it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ostrain.errors import OstrainError
from ostrain.states import ExitCode


@dataclass(frozen=True)
class Product:
    """version: of its tables; max_device: highest physical id; counts: devices a server may have (empty: any);
    dies: ranks a card."""

    name: str
    title: str
    version: str
    max_device: int
    counts: tuple[int, ...] = ()
    dies: int = 1


PRODUCTS = {
    product.name: product
    for product in (
        Product("910A", "Atlas 800 (910A)", "1.0", 7, (1, 2, 4, 8)),
        Product("910B", "Atlas 800T A2 / 900 A2 (910B)", "1.0", 15),
        Product("A3", "Atlas 900 A3 (two dies a card)", "1.2", 15, dies=2),
        Product("950", "Ascend 950", "2.0", 64),
    )
}


def product(name: str) -> Product:
    """A product by name. OstrainError (exit 2) with the names there are."""
    known = {key.lower(): value for key, value in PRODUCTS.items()}
    if name.lower() not in known:
        raise OstrainError(
            f"no product {name!r}", next_step="use one of " + ", ".join(PRODUCTS), exit_code=ExitCode.USAGE
        )
    return known[name.lower()]


def by_chip(name: str, has_physical_ids: bool) -> Product | None:
    """The product from a chip's name in ``npu-smi``. has_physical_ids: it prints a Phy-ID, as it does for A3."""
    word = name.strip().removeprefix("Ascend").strip()
    if has_physical_ids and not word.startswith(("910A", "910B", "95")):
        return PRODUCTS["A3"]
    if re.match(r"910B\d|910_93", word):
        return PRODUCTS["A3" if word.startswith("910_93") else "910B"]
    if word.startswith("910"):
        return PRODUCTS["910A"]
    return PRODUCTS["950"] if word.startswith("95") else None
