"""Captions cleaned as the text encoder of Open-Sora was trained and sampled with them.

Upstream: opensora/models/text_encoder/t5.py, ``text_preprocessing`` (the same in v1.0, v1.1 and v1.2), after
DeepFloyd IF and PixArt-alpha. What it does is part of the model: a caption cleaned another way is another prompt. So
its oddities are kept too, such as the trailing ``4:3 `` that is taken for an article number.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Sequence
from urllib.parse import unquote_plus

from models.exits import BAD_CONFIG, PayloadError

_DOMAIN = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_SCHEME_TAIL = r":(?:/{1,3}|[a-zA-Z0-9%])"
_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    r"[\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0"
    r"\uFE31\uFE32\uFE58\uFE63\uFF0D]+"
)

Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_LINKS = _rules(
    (r"<person>", "person"),
    (rf"\b(?:https?{_SCHEME_TAIL}|{_DOMAIN})", ""),
    (rf"\b(?:www{_SCHEME_TAIL}|{_DOMAIN})", ""),
)
_SYMBOLS = _rules(
    (r"@[\w\d]+\b", ""),  # nicknames
    (r"[\u31c0-\u9fff]+", ""),  # Chinese, Japanese and Korean blocks from the CJK strokes to the unified ideographs
    (_DASHES, "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),  # a line break that was written out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{_FILE_TYPES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_JOINERS = re.compile(r"[-_]")
_MOST_JOINERS = 3  # a text with more is a name such as this-is-my-cute-cat
_NOISE = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article codes, four forms
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_TYPES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes; the second x is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def text_preprocessing(text: str, clean: bool = True) -> str:
    """The caption as the text encoder gets it: cleaned twice, or only in lower case and stripped.

    PayloadError where ftfy or beautifulsoup4 is not installed.
    """
    return clean_caption(clean_caption(text)) if clean else text.lower().strip()


def clean_caption(text: str) -> str:
    """One cleaning pass: links, markup, symbols, codes and advertising words go, spacing is made even."""
    text = _apply(_LINKS, unquote_plus(text).strip().lower())
    text = _apply(_SYMBOLS, _without_markup(text))
    if len(_JOINERS.findall(text)) > _MOST_JOINERS:
        text = _JOINERS.sub(" ", text)
    return _apply(_NOISE, _mended(text)).strip()


def _apply(rules: Sequence[tuple[re.Pattern[str], str]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_markup(text: str) -> str:
    """Tags removed, entities decoded."""
    if "<" not in text and "&" not in text:
        return text
    try:
        from bs4 import BeautifulSoup
    except ImportError as error:
        raise _not_installed("beautifulsoup4") from error
    with warnings.catch_warnings():
        # It warns of captions that look like a file name or an address; they are captions all the same.
        warnings.simplefilter("ignore")
        return BeautifulSoup(text, features="html.parser").text


def _mended(text: str) -> str:
    """Broken encodings repaired, what is still written as an entity decoded."""
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise _not_installed("ftfy") from error
    return html.unescape(html.unescape(fix_text(text))).strip()


def _not_installed(package: str) -> PayloadError:
    return PayloadError(
        BAD_CONFIG,
        f"captions cannot be cleaned: {package} is not installed",
        why="the text encoder's cleaning mends encodings with ftfy and removes markup with beautifulsoup4",
        next_step="install both: pip install 'ostrain[models]'",
    )
