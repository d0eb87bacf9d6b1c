"""Conditioning frames: which frames of references go where in the latent, and how firmly they stay.

A mask strategy is text: groups separated by ``;``, each ``loop, reference, reference start, target start, length, edit
ratio``, where missing numbers at the end are 0, 0, 0, 0, 1, 0. Negative starts count from the end. In the mask 1 means
generate, 0 keep the reference, 0.6 keep it until 0.6 of the steps remain and generate from there.

Upstream: opensora/utils/inference_utils.py (v1.2) and scripts/inference-long.py (v1.1). v1.1 neither snaps starts to
whole chunks of the autoencoder nor shortens a group to its reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DEFAULTS = ("0", "0", "0", "0", "1", "0")


@dataclass(frozen=True)
class Group:
    """One group of a mask strategy; starts and length in latent frames."""

    loop: int
    reference: int
    reference_start: int
    target_start: int
    length: int
    edit_ratio: float


def split_mask_strategy(text: str) -> list[list[str]]:
    """The groups as text, six fields each. ValueError for a group of more than six fields."""
    groups = []
    for part in text.split(";"):
        fields = part.split(",")
        if len(fields) > len(_DEFAULTS):
            raise ValueError(f"mask strategy {text!r}: {part!r} has {len(fields)} fields, at most {len(_DEFAULTS)}")
        groups.append(fields + list(_DEFAULTS[len(fields) :]))
    return groups


def parse_mask_strategy(text: str | None) -> list[Group]:
    """The groups of a mask strategy; none for None and for the empty text. ValueError says which field is wrong."""
    if not text:
        return []
    groups = []
    for fields in split_mask_strategy(text):
        try:
            loop, reference, reference_start, target_start, length = (int(field) for field in fields[:5])
            edit_ratio = float(fields[5])
        except ValueError:
            raise ValueError(
                f"mask strategy {text!r}: {','.join(fields)!r} is not five integers and an edit ratio"
            ) from None
        groups.append(Group(loop, reference, reference_start, target_start, length, edit_ratio))
    return groups


def find_nearest_point(value: int, point: int, maximum: int) -> int:
    """The multiple of ``point`` nearest to ``value`` (half goes down) that has a whole chunk before ``maximum``.

    A value already past the last whole chunk stays in its own.
    """
    count, rest = divmod(value, point)
    if rest > point / 2 and count < maximum // point - 1:
        count += 1
    return count * point


def apply_mask_strategy(
    z: np.ndarray,
    references: Sequence[Sequence[np.ndarray]],
    strategies: Sequence[str | None],
    loop: int,
    align: int | None = None,
    version: str = "v1.2",
) -> tuple[np.ndarray, np.ndarray | None]:
    """z [B, C, T, H, W] with reference frames [C, frames, H, W] copied in, and the mask float32 [B, T].

    align: starts are snapped to multiples of it (v1.2: 5 latent frames, the autoencoder's chunk). The mask of an empty
    batch is None. ValueError: malformed strategy, a reference that does not exist, a start outside its clip.
    """
    if not strategies:
        return z, None
    z = z.copy()
    mask = np.ones((len(strategies), z.shape[2]), np.float32)
    for row, strategy in enumerate(strategies):
        for group in parse_mask_strategy(strategy):
            if group.loop == loop:
                reference = _reference(references[row], group, strategy)
                _copy(z[row], mask[row], reference, group, None if version == "v1.1" else align, version)
    return z, mask


def _reference(references: Sequence[np.ndarray], group: Group, strategy: str | None) -> np.ndarray:
    if not -len(references) <= group.reference < len(references):
        raise ValueError(
            f"mask strategy {strategy!r} asks for reference {group.reference}, but there are {len(references)}"
        )
    return references[group.reference]


def _copy(
    z: np.ndarray, mask: np.ndarray, reference: np.ndarray, group: Group, align: int | None, version: str
) -> None:
    """Copies one group's frames into a sample z [C, T, H, W] and its mask [T]."""
    frames, available = z.shape[1], reference.shape[1]
    start = _start(group.reference_start, available, align, "reference")
    target = _start(group.target_start, frames, align, "target")
    source = reference[:, start : start + max(group.length, 0)]
    length = min(max(group.length, 0), frames - target)
    if version == "v1.1":
        # One frame fills the whole length; otherwise the reference has to have it.
        if source.shape[1] not in (1, length):
            raise ValueError(f"{group.length} frames from frame {start} of a reference with {available} do not exist")
    else:
        length = min(length, source.shape[1])
        source = source[:, :length]
    z[:, target : target + length] = source
    mask[target : target + length] = group.edit_ratio


def _start(value: int, frames: int, align: int | None, what: str) -> int:
    start = value + frames if value < 0 else value
    if not 0 <= start <= frames:
        raise ValueError(f"{what} start {value} is outside the {frames} latent frames there are")
    return start if align is None else find_nearest_point(start, align, frames)


def continue_strategy(
    strategy: str | None, references: int, loop: int, condition_frames: int, edit_ratio: float | None = None
) -> str:
    """The strategy that also starts loop ``loop`` with the last latent frames of the loop before.

    references: how many the sample has, that of the loop before (the last one) included. edit_ratio: None for v1.1.
    """
    group = f"{loop},{references - 1},-{condition_frames},0,{condition_frames}"
    if edit_ratio is not None:
        group += f",{edit_ratio}"
    return f"{strategy};{group}" if strategy else group


def append_generated(
    references: Sequence[list[np.ndarray]],
    strategies: Sequence[str | None],
    generated: Sequence[np.ndarray],
    loop: int,
    condition_frames: int,
    edit_ratio: float | None = None,
) -> list[str]:
    """Adds the latent clips [C, T, H, W] just generated to every sample's references; the strategies that use them.

    TypeError for a sample whose references are None rather than a list: there is nothing they could be added to.
    """
    for row, held in enumerate(references):
        if not isinstance(held, list):
            raise TypeError(f"references of sample {row} are {held!r}, not a list")
        held.append(generated[row])
    return [
        continue_strategy(strategy, len(held), loop, condition_frames, edit_ratio)
        for strategy, held in zip(strategies, references, strict=True)
    ]
