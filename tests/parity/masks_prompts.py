"""Training masks, mask strategies, prompt and score strings, size information, warm-up, frame windows."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.config import OptimizerConfig
from models.data.frames import window
from models.data.masks import choose_mask, frame_mask, mask_ratios, random_mask
from models.optim.schedule import learning_rate
from models.sampling import captions, metadata, prompts
from models.sampling.mask_strategy import (
    append_generated,
    apply_mask_strategy,
    find_nearest_point,
    parse_mask_strategy,
    split_mask_strategy,
)
from tests.parity.cases import Arrays, Case, CaseError
from tests.parity.tables import attempt

# Sizes were recorded with five decimals; the last place of a learning rate depends on the order of two operations.
ROUNDED = {"multi_res": 5.1e-6, "linear_warmup_lr": 1e-17}
BATCH = 3  # of the seeded masks
_APPLY = re.compile(r"apply/loop(\d+)(?:_align(\d+|None))?/")
_WARMUP = re.compile(r"linear_warmup_lr_base([^_]+)_steps(\d+)")
_PIPELINE = re.compile(r"pipeline(?:_aes([\d.]+))?(?:_flow([\d.]+))?(?:_(.+))?")


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    computed: Arrays = {}
    if "mask_random/mask" in case.outputs:
        rows = zip(case.inputs["mask_random/u"], case.expected["mask_random_ratio"], strict=True)
        computed["mask_random/mask"] = np.stack([random_mask(u, ratio) for u, ratio in rows]).astype(np.uint8)
    strategies = case.given["mask_strategies"]
    references = [
        [case.inputs[f"apply/ref_{row}_{number}"] for number in range(len(case.given["refs"][row]))]
        for row in range(len(strategies))
    ]
    for scenario in sorted({found[0] for key in case.outputs if (found := _APPLY.match(key))}):
        options = _APPLY.match(scenario)
        assert options is not None
        align = None if options[2] in (None, "None") else int(options[2])
        z = case.inputs["apply/z"]
        z, mask = apply_mask_strategy(z, references, strategies, int(options[1]), align, case.version)
        computed[f"{scenario}z"] = z
        if mask is not None:
            computed[f"{scenario}mask"] = mask
    return computed


def tables(case: Case) -> dict[str, Any]:
    """All recorded texts and tables of the case, computed."""
    texts = [prompts.extract_options(prompt, case.version) for prompt in case.given["prompts"]]
    plain = [text for text, _ in texts]
    computed: dict[str, Any] = {"masks": _masks(case), "selection": _selection(case)}
    computed |= _strategies(case) | _prompts(case, plain) | _captions(case) | _small(case)
    if case.version == "v1.1":
        computed["extract_json"] = {"prompts": plain, "info": [options for _, options in texts]}
        return computed
    columns = {"reference": "reference_path", "mask_strategy": "mask_strategy"}
    found = {name: [options.get(key, "") for _, options in texts] for name, key in columns.items()}
    return computed | {"extract_json": {"prompts": plain} | found}


class _Enumerated:
    """Draws that take every value in turn: ``again`` until all combinations have been seen."""

    def __init__(self) -> None:
        self._values: list[int] = []
        self._highest: list[int] = []
        self._place = 0

    def integer(self, low: int, high: int) -> int:
        if self._place == len(self._values):
            self._values.append(low)
            self._highest.append(high)
        self._place += 1
        return self._values[self._place - 1]

    def ratio(self, low: float, high: float) -> float:
        raise ValueError("real numbers cannot be enumerated")

    def uniforms(self, count: int) -> np.ndarray:
        raise ValueError("real numbers cannot be enumerated")

    def again(self) -> bool:
        self._place = 0
        while self._values and self._values[-1] == self._highest[-1]:
            self._values.pop()
            self._highest.pop()
        if not self._values:
            return False
        self._values[-1] += 1
        return True


class _Python:
    """Draws of Python's generator, in the original's order."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def ratio(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    def uniforms(self, count: int) -> np.ndarray:
        raise ValueError("the original takes these from its device's generator")


def _bits(mask: np.ndarray) -> str:
    return "".join("01"[int(bit)] for bit in mask)


def _masks(case: Case) -> dict[str, Any]:
    def sets(name: str, frames: int) -> list[str]:
        draws, found = _Enumerated(), set()
        more = True
        while more:
            found.add(_bits(frame_mask(name, frames, draws)))
            more = draws.again()
        return sorted(found)

    def seeded(name: str, frames: int) -> list[list[str]]:
        return [_batch(name, frames, _Python(seed)) for seed in case.given["seeds"]]

    wanted = case.expected.get("masks", {})
    return {
        kind: {key: attempt(compute, *_mask_key(key)) for key in wanted.get(kind, {})}
        for kind, compute in (("sets", sets), ("seeded", seeded))
    }


def _mask_key(key: str) -> tuple[str, int]:
    name, _, frames = key.rpartition("/T")
    return name, int(frames)


def _batch(name: str, frames: int, draws: _Python) -> list[str]:
    rows = []
    for _ in range(BATCH):
        chosen = choose_mask({name: 1.0}, draws.random.random())
        rows.append(_bits(frame_mask(chosen, frames, draws)))
    return rows


class _Lowest(_Enumerated):
    """Draws whose integers are always the lowest."""

    def integer(self, low: int, high: int) -> int:
        return low


def _selection(case: Case) -> dict[str, Any]:
    recorded = case.expected.get("selection")
    if recorded is None:
        return {}
    ratios = mask_ratios(recorded["ratios"], complete=case.version == "v1.1")
    frames = recorded["num_frames"]
    order = list(recorded["ratios"])
    if case.version != "v1.1" and "identity" not in order:
        order.append("identity")
    return {
        "ratios": recorded["ratios"],
        "order": order,
        "num_frames": frames,
        "randint": recorded["randint"],
        "draw_to_mask": [
            [draw, _bits(frame_mask(choose_mask(ratios, draw), frames, _Lowest()))]
            for draw, _ in recorded["draw_to_mask"]
        ],
    }


def _strategies(case: Case) -> dict[str, Any]:
    texts = case.given["mask_strategies"]

    def fields(text: str) -> list[list[Any]]:
        return [list(vars(group).values()) for group in parse_mask_strategy(text)]

    computed: dict[str, Any] = {
        "parse_mask_strategy": [attempt(fields, text) for text in texts],
        "process_mask_strategy": [None if text is None else attempt(split_mask_strategy, text) for text in texts],
        "apply_empty_batch_list": apply_mask_strategy(np.zeros((0, 4, 5, 2, 2), np.float32), [], [], 0)[1],
        "find_nearest_point": [
            [value, point, most, find_nearest_point(value, point, most)]
            for value, point, most, _ in case.expected.get("find_nearest_point", [])
        ],
    }
    if "append_generated" in case.expected:
        computed["append_generated"] = _append_generated(case.expected["append_generated"])
    return computed


def _append_generated(recorded: dict[str, Any]) -> dict[str, Any]:
    start, edits, frames = recorded["start"], recorded["edit"], recorded["condition_frame_length"]
    clip = np.zeros((4, frames, 1, 1), np.float32)
    held = [[clip] * count for count in recorded["start_refs"]]
    strategies, computed = list(start), dict(recorded)
    for number, edit in enumerate(edits, start=1):
        strategies = append_generated(held, strategies, [clip] * len(start), number, frames, edit)
        computed[f"after_loop{number}"] = strategies
    computed["refs"] = [len(references) for references in held]
    nothing: Any = [None]
    computed["refs_none"] = attempt(append_generated, nothing, [""], [clip], 1, frames, edits[0])
    return computed


def _prompts(case: Case, plain: Sequence[str]) -> dict[str, Any]:
    loops = case.given.get("loops", [0])

    def split(prompt: str) -> list[Any]:
        segments = prompts.split_prompt(prompt)
        return [prompt, list(segments.texts), None if segments.starts is None else list(segments.starts)]

    def merged(prompt: str) -> list[str]:
        return [prompt, prompts.merge_prompt(prompts.split_prompt(prompt))]

    computed: dict[str, Any] = {
        "split": [attempt(split, prompt) for prompt in plain],
        "merge": [attempt(merged, prompt) for prompt in plain],
        "loop": {key: _of_loop(plain, int(key), row) for key, row in case.expected.get("loop", {}).items()},
        "process_prompts": [
            [prompt, loops, attempt(prompts.prompts_of_loops, prompt, loops)]
            for prompt, loops, _ in case.expected.get("process_prompts", [])
        ],
        "append_score": [_scored(plain, row) for row in case.expected.get("append_score", [])],
    }
    for key in case.expected:
        options = _PIPELINE.fullmatch(key)
        if options:
            aes, flow = (None if value is None else float(value) for value in options.groups()[:2])
            motion = None if options[3] is None else options[3].replace("_", " ")
            computed[key] = [_pipeline(prompt, aes, flow, motion, loops) for prompt in plain]
    return computed


def _of_loop(plain: Sequence[str], loop: int, recorded: Any) -> Any:
    rows = [attempt(prompts.prompt_of_loop, prompt, loop) for prompt in plain]
    if isinstance(recorded, dict):  # recorded for the batch as a whole
        return next((row for row in rows if isinstance(row, dict)), rows)
    return rows


def _scored(plain: Sequence[str], row: dict[str, Any]) -> dict[str, Any]:
    scores = {key: row[key] for key in ("aes", "flow", "camera_motion")}
    return scores | {"out": [prompts.append_scores(prompt, **scores) for prompt in plain]}


def _pipeline(
    prompt: str, aes: float | None, flow: float | None, motion: str | None, loops: Sequence[int]
) -> list[Any]:
    ready = prompts.prepare_prompt(prompt, aes, flow, motion)
    return [prompt, ready, [attempt(prompts.prompt_of_loop, ready, loop) for loop in loops]]


def _captions(case: Case) -> dict[str, Any]:
    caption, version = "A man walks.", case.version

    def scored(row: dict[str, Any]) -> str:
        return captions.with_scores(row["text"], row.get("aes"), row.get("flow"))

    return {
        "train_camera_motion": {
            motion: attempt(captions.with_camera_motion, caption, motion, version)
            for motion in case.expected.get("train_camera_motion", {})
        },
        "train_camera_motion_probs": {
            motion: attempt(captions.camera_motion_probability, motion, version)
            for motion in case.expected.get("train_camera_motion_probs", {})
        },
        "train_score_to_text_kept": [
            [row, scored(row)] for row, _ in case.expected.get("train_score_to_text_kept", [])
        ],
        "train_score_drop_prob": captions.SCORE_DROP_PROBABILITY,
    }


def _small(case: Case) -> dict[str, Any]:
    def info(row: dict[str, Any]) -> dict[str, Any]:
        height, width = row["image_size"]
        out = metadata.multi_resolution_info(row["type"], row["batch"], (height, width), row["num_frames"], row["fps"])
        return row | {"out": {key: value.tolist() for key, value in out.items()}}

    def frames(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"index": window(row["total"], row["num_frames"], row["interval"], row["start"]).tolist()}

    expected = case.expected
    computed: dict[str, Any] = {
        "mask_random_ratio": expected.get("mask_random_ratio"),  # an input, whatever the file it is recorded in
        "multi_res": [attempt(info, row) for row in expected.get("multi_res", [])],
        "dframe_to_frame": [
            [count, attempt(metadata.pixel_frames, count)] for count, _ in expected.get("dframe_to_frame", [])
        ],
        "save_names": [[row, _save_name(row, recorded)] for row, recorded in expected.get("save_names", [])],
        "frame_index": [frames(row) for row in expected.get("frame_index", [])],
    }
    for key, rates in expected.items():
        if options := _WARMUP.fullmatch(key):
            config = OptimizerConfig(lr=float(options[1]), warmup_steps=int(options[2]), schedule="constant")
            computed[key] = [learning_rate(config, step, len(rates)) for step in range(len(rates))]
    return computed


def _save_name(row: dict[str, Any], recorded: str) -> str:
    names = {"sample_idx": "index", "sample_name": "name", "num_sample": "samples", "k": "sample"}
    unknown = set(row) - set(names) - {"prompt", "prompt_as_path"}
    if unknown:
        raise CaseError(f"unknown options of a result's name: {', '.join(sorted(unknown))}")
    folder = recorded.partition("/")[0]  # it is the same for all and recorded nowhere else
    build: Callable[..., Any] = metadata.sample_path
    return str(build(folder, **{names.get(key, key): value for key, value in row.items()}))
