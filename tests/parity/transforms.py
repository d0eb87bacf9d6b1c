"""Resize and crop of clips and images."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.data.transforms import (
    center_crop_image,
    center_crop_video,
    resize_crop_to_fill_image,
    resize_crop_to_fill_video,
)
from tests.parity.cases import Arrays, Case


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    computed: Arrays = {}
    for position, item in enumerate(case.config["items"]):
        computed |= _item(case, item.get("i", position), item)
    return computed


def _item(case: Case, index: Any, item: dict[str, Any]) -> Arrays:
    frames = np.ascontiguousarray(case.inputs[f"{index}/video"].transpose(0, 2, 3, 1))
    size = (item["size"][0], item["size"][1])
    result = {
        "video_resize_crop": resize_crop_to_fill_video(frames, size),
        "image_resize_crop": resize_crop_to_fill_image(frames[0], size),
    }
    if size[0] == size[1]:
        result["video_center"] = center_crop_video(frames, size[0])
        result["image_center"] = center_crop_image(frames[0], size[0])
    return {f"{index}/{key}": value for key, value in result.items()}
