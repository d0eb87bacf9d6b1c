"""Caption cleaning beyond the recorded captions (see test_parity)."""

from __future__ import annotations

import sys
import warnings

import pytest

from models.exits import PayloadError
from models.text.cleaning import clean_caption, text_preprocessing


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("See HTTPS://Example.com/a now", "see now"),
        ("mail me@host and @you", "mail me and"),
        ("<p>a &lt; b</p>", "a < b"),
        ("100%25 sure", "100% sure"),
        ("a　b 龍 c", "a b c"),
        ("ratio 4:30 ", "ratio 4:30"),
        ("1-2-3-4-5", "1 2 3 4 5"),
        ("1-2-3-4", "1-2-3-4"),
        ("1920х1080 clip", "clip"),
        ("'quoted'", "quoted"),
        ("", ""),
        ("   ", ""),
    ],
)
def test_one_pass(text: str, cleaned: str) -> None:
    assert clean_caption(text) == cleaned


def test_preprocessing_cleans_twice_or_not_at_all() -> None:
    assert clean_caption("_,under") == ", under"
    assert text_preprocessing("_,under") == "under"
    assert text_preprocessing("  The <b>SEA</b> ", clean=False) == "the <b>sea</b>"


def test_captions_that_look_like_files_or_addresses_warn_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clean_caption("a&b.html") == "a b. html"


@pytest.mark.parametrize(("module", "package"), [("ftfy", "ftfy"), ("bs4", "beautifulsoup4")])
def test_a_missing_package_is_named(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PayloadError, match=package) as caught:
        clean_caption("<b>text</b>")
    assert "pip install" in caught.value.next_step
