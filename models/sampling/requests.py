"""What is to be sampled: every prompt with its texts by loop, conditions, seed and the name of its result."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.config.sample import SampleConfig
from models.exits import BAD_CONFIG, PayloadError
from models.sampling.captions import with_camera_motion
from models.sampling.mask_strategy import parse_mask_strategy
from models.sampling.metadata import sample_path
from models.sampling.prompt_files import Prompt, read_prompts
from models.sampling.prompts import (
    OPTIONS,
    Segments,
    extract_options,
    merge_prompt,
    prepare_prompt,
    prompt_of_loop,
    prompts_of_loops,
    split_prompt,
)
from models.text.cleaning import text_preprocessing

# Bytes of a file's name before its ending; file systems allow 255.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Request:
    """One result.

    index: of its prompt in the whole list. sample: which of the prompt's samples it is. prompt: as it was written,
    without options; texts: what the text encoder is given, one a loop. references: paths as written; strategy: of the
    conditioning frames. variant: with ``seed`` and ``prompt`` the key of all its randomness. stem: path of the result
    below the output folder, without ending. embedding: name of its npz file where texts are embedded already.
    """

    index: int
    sample: int
    prompt: str
    texts: tuple[str, ...]
    negative: str | None
    references: tuple[str, ...]
    strategy: str
    seed: int
    variant: int
    stem: str
    embedding: str = ""


def build_requests(config: SampleConfig, root: Path) -> list[Request]:
    """All results, in the order of their prompts. PayloadError says which prompt is wrong, and where it stands."""
    found = read_prompts(config, root)
    stop = len(found) if config.end_index is None else min(config.end_index, len(found))
    if config.start_index >= stop:
        raise _bad(
            "no prompt is left to sample",
            f"start_index {config.start_index}, end_index {config.end_index}, {len(found)} prompts",
            "prompts",
            "choose a part of the prompts that is not empty",
        )
    references = _one_each(config.reference_path, "reference_path", len(found))
    strategies = _one_each(config.mask_strategy, "mask_strategy", len(found))
    repeated: Counter[tuple[str, int]] = Counter()
    requests: list[Request] = []
    for index, prompt in enumerate(found):
        made = _requests_of(config, index, prompt, references[index], strategies[index], repeated)
        if config.start_index <= index < stop:
            requests += made
    _check_names(requests)
    return requests


def _requests_of(
    config: SampleConfig, index: int, prompt: Prompt, reference: str, strategy: str, repeated: Counter[tuple[str, int]]
) -> list[Request]:
    """The samples of one prompt."""
    try:
        text, options = extract_options(prompt.text, config.version)
        unknown = [key for key in options if key not in OPTIONS]
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(OPTIONS)}")
        texts = _texts(config, text)
        reference = str(options.get("reference_path") or prompt.reference_path or reference)
        strategy = str(options.get("mask_strategy") or prompt.mask_strategy or strategy)
        paths = tuple(part.strip() for part in reference.split(";") if part.strip())
        # One image without a word on where it goes is the first frame.
        strategy = strategy or ("0" if paths else "")
        _check_strategy(strategy, len(paths), config)
    except ValueError as error:
        raise _bad("a prompt cannot be used", str(error), prompt.where, "correct it") from None
    negative = config.negative_prompt if prompt.negative is None else prompt.negative
    seed = config.seed if prompt.seed is None else prompt.seed
    first = repeated[(text, seed)]
    repeated[(text, seed)] += config.num_samples
    return [
        Request(
            index=index,
            sample=sample,
            prompt=text,
            texts=texts,
            negative=None if negative is None else text_preprocessing(negative),
            references=paths,
            strategy=strategy,
            seed=seed,
            variant=first + sample,
            stem=_stem(config, index, sample, text, prompt),
            embedding=prompt.embedding,
        )
        for sample in range(config.num_samples)
    ]


def _texts(config: SampleConfig, text: str) -> tuple[str, ...]:
    """One cleaned text a loop, with what the configuration appends. ValueError for malformed loops."""
    if config.version == "v1.2":
        ready = prepare_prompt(text, config.aes, config.flow, config.camera_motion)
        return tuple(prompt_of_loop(ready, loop) for loop in range(config.loop))
    if config.camera_motion is not None:
        segments = split_prompt(text)
        moved = tuple(with_camera_motion(part, config.camera_motion, config.version) for part in segments.texts)
        text = merge_prompt(Segments(moved, segments.starts))
    return tuple(prompts_of_loops(text, config.loop))


def _check_strategy(strategy: str, references: int, config: SampleConfig) -> None:
    """ValueError for a group that no loop would use, or whose reference does not exist."""
    for group in parse_mask_strategy(strategy):
        if not 0 <= group.loop < config.loop:
            raise ValueError(
                f"mask strategy {strategy!r} conditions loop {group.loop}; loops made: 0 to {config.loop - 1}"
            )
        there = references + group.loop  # every loop before has added what it made
        if not -there <= group.reference < there:
            raise ValueError(
                f"mask strategy {strategy!r} asks for reference {group.reference} in loop {group.loop}, "
                f"but there are {there}"
            )
        if group.length < 1:
            raise ValueError(f"mask strategy {strategy!r} conditions {group.length} frames")
        if not 0 <= group.edit_ratio <= 1:
            raise ValueError(
                f"mask strategy {strategy!r} has the edit ratio {group.edit_ratio:g}, which is not in 0..1"
            )


def _one_each(given: str | Sequence[str | None], name: str, count: int) -> list[str]:
    """One for all prompts, or a list as long as theirs."""
    if isinstance(given, str):
        return [given] * count
    if len(given) != count:
        raise _bad(
            f"{name} has {len(given)} entries for {count} prompts",
            "a list needs one entry a prompt, empty where there is nothing",
            f"sample.{name}",
            "complete the list, or give one text for all",
        )
    return [value or "" for value in given]


def _stem(config: SampleConfig, index: int, sample: int, text: str, prompt: Prompt) -> str:
    output = config.output
    text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    if output.prompt_as_path and not text:
        raise _bad("an empty prompt cannot name its result", "", prompt.where, "switch output.prompt_as_path off")
    if prompt.name:
        stem = prompt.name.replace("/", "_") + (f"-{sample}" if config.num_samples > 1 else "")
    else:
        stem = str(sample_path("", index, output.name, text, output.prompt_as_path, config.num_samples, sample))
    return _short(stem)


def _short(stem: str) -> str:
    """A name that file systems take; what is cut off leaves its hash, so that names stay different."""
    data = stem.encode()
    if len(data) <= _LONGEST_NAME:
        return stem
    mark = hashlib.blake2b(data, digest_size=4).hexdigest()
    return f"{data[:_LONGEST_NAME].decode(errors='ignore')}-{mark}"


def _check_names(requests: Sequence[Request]) -> None:
    twice = [stem for stem, count in Counter(request.stem for request in requests).items() if count > 1]
    if twice:
        raise _bad(
            "two results would have the same name",
            f"{twice[0]!r}: {len(twice)} such names" if len(twice) > 1 else repr(twice[0]),
            "sample.output",
            "number the results: switch output.prompt_as_path off, or give the rows other names",
        )


def _bad(what: str, why: str, where: str, next_step: str) -> PayloadError:
    return PayloadError(BAD_CONFIG, what, where=where, why=why, next_step=next_step)
