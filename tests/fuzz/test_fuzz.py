"""A short, repeatable look at every target."""

from __future__ import annotations

import pytest

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_problems_in_words(name: str) -> None:
    fuzz(TARGETS[name], 40, repeatable=True)
