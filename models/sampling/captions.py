"""Scores and camera motion in captions for training. They are written otherwise than in prompts (see ``prompts``).

Upstream: tools/datasets/datautil.py, ``score_to_text`` (v1.2) and ``merge_cmotion`` (v1.1 and v1.2).
"""

from __future__ import annotations

# A score is left out of a training caption with this probability, so that prompts without scores stay in practice.
SCORE_DROP_PROBABILITY = 0.2

CAMERA_MOTION: dict[str, dict[str, str | None]] = {
    "v1.1": {
        "static": "The camera is static.",
        "dynamic": "The camera is moving.",
        "unknown": None,
        "zoom in": "The camera is zooming in.",
        "zoom out": "The camera is zooming out.",
        "pan left": "The camera is panning left.",
        "pan right": "The camera is panning right.",
        "tilt up": "The camera is tilting up.",
        "tilt down": "The camera is tilting down.",
        "pan/tilt": "The camera is panning.",
    },
    "v1.2": {
        name.replace(" ", "_"): f"Camera motion: {name}."
        for name in ("static", "pan right", "pan left", "zoom in", "zoom out", "tilt up", "tilt down")
    },
}


def camera_motion_probability(motion: str, version: str = "v1.2") -> float:
    """How often a caption names its camera motion: always, but never an unknown one."""
    return 0.0 if CAMERA_MOTION[version][motion] is None else 1.0


def with_camera_motion(caption: str, motion: str, version: str = "v1.2") -> str:
    """The caption with a sentence on the camera. ValueError for a class that the version does not know."""
    sentences = CAMERA_MOTION[version]
    if motion not in sentences:
        raise ValueError(f"unknown camera motion {motion!r}; {version} knows {', '.join(sentences)}")
    sentence = sentences[motion]
    return caption if sentence is None else f"{caption} {sentence}"


def with_scores(caption: str, aes: float | None = None, flow: float | None = None) -> str:
    """The caption with the scores it is given, in brackets. Drop a score with SCORE_DROP_PROBABILITY before."""
    named = (("aesthetic score", aes), ("motion score", flow))
    scores = [f"{name}: {value:.1f}" for name, value in named if value is not None]
    return f"{caption} [{', '.join(scores)}]" if scores else caption
