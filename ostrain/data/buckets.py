"""What a data set becomes under a configuration: how many samples fall into each bucket, and how many batches."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.config import TrainConfig
from models.data.bucket import Choice
from models.data.catalogue import Clip
from ostrain.errors import OstrainError
from ostrain.paths import cache_dir

_ORANGE, _BLUE = "#d9822b", "#1f4e8c"
_BARS = 40


@dataclass
class Statistics:
    """Of ``clips`` usable clips in ``epochs`` epochs.

    samples and batches: by bucket (``resolution/frames``, or the shape where there are no buckets): how often it was
    chosen, how many batches over all workers it fills, a bucket of one shape at a time. shapes: samples by exact shape.
    dropped: uses of clips that no bucket kept. unusable: clips by reason.
    """

    clips: int
    epochs: int
    replicas: int
    samples: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, int] = field(default_factory=dict)
    shapes: Counter[str] = field(default_factory=Counter)
    ratios: list[tuple[float, int]] = field(default_factory=list)
    dropped: int = 0
    unusable: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        buckets = [
            {"bucket": name, "samples": count, "batch_size": self.sizes[name], "steps": self.batches[name]}
            for name, count in self.samples.items()
        ]
        return {
            "clips": self.clips, "unusable": dict(self.unusable), "epochs": self.epochs, "replicas": self.replicas,
            "samples": sum(self.samples.values()), "dropped": self.dropped, "steps": sum(self.batches.values()),
            "buckets": buckets, "shapes": dict(self.shapes),
        }  # fmt: skip


def statistics(
    config: TrainConfig, annotations: Path, epochs: int, replicas: int, progress: Callable[[int], None]
) -> Statistics:
    """Deals every usable clip ``epochs`` times, with the draws of a training with the same seed.

    config.data says where clips (or latents) are. replicas: workers (or groups of sp of them) times accumulation steps.
    progress is told of every header that was read. PayloadError: unreadable annotations, no usable clip.
    """
    from models.data.choosing import chooser, common_shape
    from models.data.order import bucket_draws
    from models.settings import fixed_shape

    clips, unusable = _clips(config, annotations, progress)
    shape = fixed_shape(config.data) or common_shape(config, clips)
    choose = chooser(config, clips, shape)
    result = Statistics(len(clips), epochs, replicas, unusable=unusable)
    choices: list[Choice] = []
    for epoch in range(epochs):
        for number in range(len(clips)):
            choice = choose(number, bucket_draws(config.seed, epoch, number))
            if choice is None or choice.batch_size == 0:
                result.dropped += 1
            else:
                choices.append(choice)
    _count(result, choices)
    return result


def _clips(config: TrainConfig, annotations: Path, progress: Callable[[int], None]) -> tuple[list[Clip], Counter[str]]:
    """Usable clips, and the others by reason. Headers are remembered between calls."""
    from models.data.catalogue import headers_of
    from models.data.choosing import unfit_rule
    from models.settings import fixed_shape

    key = hashlib.sha256(str(annotations.absolute()).encode()).hexdigest()[:16]
    index = cache_dir() / "clips" / f"{key}.json"
    unfit = unfit_rule(config, fixed_shape(config.data))
    found, skipped = headers_of(config.data, Path.cwd(), annotations, index, unfit, progress)
    return found, Counter(clip.reason for clip in skipped)


def _count(result: Statistics, choices: Sequence[Choice]) -> None:
    by_shape = Counter((choice.name, choice.shape, choice.batch_size) for choice in choices)
    ratios: Counter[float] = Counter()
    for (name, shape, batch_size), count in by_shape.items():
        bucket = "/".join(name.split("/")[:2])
        result.samples[bucket] += count
        result.batches[bucket] += count // (batch_size * result.replicas)
        result.sizes[bucket] = batch_size
        result.shapes[str(shape)] += count
        ratios[round(shape.height / shape.width, 2)] += count
    result.samples = Counter(dict(sorted(result.samples.items(), key=lambda item: _order(item[0]), reverse=True)))
    result.ratios = sorted(ratios.items())


def _order(bucket: str) -> tuple[int, int, str]:
    """Most pixels and most frames first; shapes by their numbers."""
    from models.data.aspect import num_pixels

    resolution, _, frames = bucket.partition("/")
    if frames:
        return num_pixels(resolution), int(frames), bucket
    numbers = [int(part) for part in bucket.split("x")]
    return numbers[1] * numbers[2], numbers[0], bucket


def draw(statistics: Statistics, title: str, path: Path) -> None:
    """A PNG: samples by bucket, and by aspect ratio. OstrainError without matplotlib or without samples."""
    try:
        import matplotlib
    except ImportError as error:
        raise OstrainError("the picture needs matplotlib", next_step="pip install 'ostrain[report]'") from error
    if not statistics.samples:
        raise OstrainError("no sample falls into any bucket: there is nothing to draw")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = statistics.samples.most_common(_BARS)
    shown.sort(key=lambda item: _order(item[0]), reverse=True)
    height = max(3.0, 1.5 + 0.3 * max(len(shown), len(statistics.ratios[:_BARS])))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, height), dpi=110)
    _bars(left, [name for name, _ in shown], [count for _, count in shown], _BLUE)
    left.set_title("samples by bucket (resolution / frames)" if "/" in shown[0][0] else "samples by shape", fontsize=10)
    ratios = sorted(sorted(statistics.ratios, key=lambda item: -item[1])[:_BARS])
    _bars(right, [f"{ratio:.2f}" for ratio, _ in ratios], [count for _, count in ratios], _ORANGE)
    right.set_title("samples by aspect ratio (height / width)", fontsize=10)
    figure.suptitle(title, fontsize=12)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _bars(axes: Any, names: Sequence[str], counts: Sequence[int], color: str) -> None:
    axes.barh(range(len(names)), counts, color=color, height=0.7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    for place, count in enumerate(counts):
        axes.annotate(f"{count:,}", (count, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, max(counts) * 1.2)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
