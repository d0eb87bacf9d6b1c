"""Prompts: JSON options at their end, texts by loop, scores appended, cleaned for the text encoder.

Upstream: opensora/utils/inference_utils.py (v1.2) and scripts/inference-long.py (v1.1). A prompt such as
``|0| a calm sea |2| a storm {"reference_path": "sea.png", "mask_strategy": "0"}`` has a text for the loops from 0 and
another for those from 2, and takes its conditions from the JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.text.cleaning import text_preprocessing

OPTIONS = ("reference_path", "mask_strategy")
_LOOPS = "|0|"


@dataclass(frozen=True)
class Segments:
    """The texts of a prompt and the loops they start at; ``starts`` is None for a prompt without loops."""

    texts: tuple[str, ...]
    starts: tuple[int, ...] | None


def extract_options(prompt: str, version: str = "v1.2") -> tuple[str, dict[str, Any]]:
    """The text before the JSON, and the options in it (none where there is no JSON).

    v1.1 also takes a JSON list for the start of the options and knows no names. ValueError: more than one JSON object,
    malformed JSON, or an option that does not exist.
    """
    opening = r"(?=[{\[])" if version == "v1.1" else r"(?=[{])"
    text, *rest = re.split(opening, prompt)
    if not rest:
        return text, {}
    if len(rest) > 1:
        raise ValueError(f"prompt {prompt!r} has more than one opening bracket; its options are one flat JSON object")
    try:
        options = json.loads(rest[0])
    except json.JSONDecodeError as error:
        raise ValueError(f"options of prompt {prompt!r} are not JSON: {error}") from None
    if version != "v1.1":
        if not isinstance(options, dict):
            raise ValueError(f"options of prompt {prompt!r} are not a JSON object")
        unknown = [key for key in options if key not in OPTIONS]
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r} in prompt {prompt!r}; known: {', '.join(OPTIONS)}")
    return text, options


def _parts(prompt: str) -> list[tuple[int, str]]:
    """(loop, text) of a prompt that starts with ``|0|``. ValueError where the bars do not alternate."""
    fields = prompt.split("|")[1:]
    if len(fields) % 2:
        raise ValueError(f"prompt {prompt!r} has a loop without a text; write |0| first text |2| second text")
    try:
        return [(int(start), text) for start, text in zip(fields[::2], fields[1::2], strict=True)]
    except ValueError:
        raise ValueError(f"prompt {prompt!r} has something other than a number between its bars") from None


def split_prompt(prompt: str) -> Segments:
    """The stripped texts of a prompt with loops, or the prompt as it is."""
    if not prompt.startswith(_LOOPS):
        return Segments((prompt,), None)
    parts = _parts(prompt)
    return Segments(tuple(text.strip() for _, text in parts), tuple(start for start, _ in parts))


def merge_prompt(segments: Segments) -> str:
    """The prompt that :func:`split_prompt` takes apart."""
    if segments.starts is None:
        return segments.texts[0]
    return "".join(f"|{start}|{text}" for start, text in zip(segments.starts, segments.texts, strict=True))


def prompt_of_loop(prompt: str, loop: int) -> str:
    """The text of loop ``loop`` (counted from 0), not stripped. ValueError for malformed loops."""
    return _spread(_parts(prompt), loop + 1)[loop] if prompt.startswith(_LOOPS) else prompt


def prompts_of_loops(prompt: str, loops: int) -> list[str]:
    """One cleaned text a loop, as v1.1. ValueError where the last text starts after the last loop."""
    if not prompt.startswith(_LOOPS):
        return [text_preprocessing(prompt)] * loops
    parts = _parts(prompt)
    texts = _spread([(start, text_preprocessing(text)) for start, text in parts], loops)
    if len(texts) != loops:
        raise ValueError(f"prompt {prompt!r} has texts for {len(texts)} loops, but {loops} are made")
    return texts


def _spread(parts: Sequence[tuple[int, str]], end: int) -> list[str]:
    """Every text as often as it has loops; the last one up to loop ``end``."""
    texts: list[str] = []
    ends = [start for start, _ in parts[1:]] + [end]
    for (start, text), stop in zip(parts, ends, strict=True):
        texts += [text] * (stop - start)
    return texts


def append_scores(
    prompt: str, aes: float | None = None, flow: float | None = None, camera_motion: str | None = None
) -> str:
    """The prompt with aesthetic score, motion score and camera motion; what it already names is left as it is."""
    added = prompt
    if aes is not None and "aesthetic score:" not in prompt:
        added = f"{added} aesthetic score: {aes:.1f}."
    if flow is not None and "motion score:" not in prompt:
        added = f"{added} motion score: {flow:.1f}."
    if camera_motion is not None and "camera motion:" not in prompt:
        added = f"{added} camera motion: {camera_motion}."
    return added


def prepare_prompt(
    prompt: str, aes: float | None = None, flow: float | None = None, camera_motion: str | None = None
) -> str:
    """A prompt without options, ready for :func:`prompt_of_loop`: every text with its scores, cleaned."""
    segments = split_prompt(prompt)
    texts = tuple(text_preprocessing(append_scores(text, aes, flow, camera_motion)) for text in segments.texts)
    return merge_prompt(Segments(texts, segments.starts))
