"""Caption cleaning of the text encoder."""

from __future__ import annotations

from typing import Any

from models.text.cleaning import clean_caption, text_preprocessing
from tests.parity.cases import Case


def tables(case: Case) -> dict[str, Any]:
    """All recorded texts of the case, computed."""
    texts = case.given["texts"]
    # Which branches agreed is a remark about the recording, nothing to compute.
    case.expected.pop("same_in", None)
    return {
        "clean_once": [clean_caption(text) for text in texts],
        "preprocess": [text_preprocessing(text) for text in texts],
        "no_preprocess": [text_preprocessing(text, clean=False) for text in texts],
    }
