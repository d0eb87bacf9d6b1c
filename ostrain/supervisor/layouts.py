"""Shrink to fit: the best legal layout for the nodes that remain, the global batch kept by accumulation. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ostrain.layout import Layout, SpKind, divisors


@dataclass(frozen=True)
class Shape:
    """How a training is spread. A step takes ``dp * accumulation * batch`` samples.

    accumulation, batch: None for tasks that have none. num_heads: of the model, for ulysses; None where it has none.
    buckets: batch sizes are the buckets' affair, ``batch`` cannot be changed.
    """

    nodes: int
    devices_per_node: int
    sp: int = 1
    sp_kind: SpKind = "ulysses"
    zero: int = 0
    accumulation: int | None = None
    batch: int | None = None
    num_heads: int | None = None
    buckets: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(self.nodes, self.devices_per_node, self.sp, self.sp_kind, self.zero)

    @property
    def replicas(self) -> int:
        """Micro batches of a step over all ranks."""
        return self.layout.dp * (self.accumulation or 1)

    @property
    def samples(self) -> int:
        """Samples of a step, in units of a bucket's batch where buckets choose."""
        return self.replicas * (1 if self.buckets else self.batch or 1)

    @property
    def legal(self) -> bool:
        return not self.layout.problems(self.num_heads or self.layout.world)


@dataclass(frozen=True)
class Fit:
    """A shape for fewer nodes. error: how far its global batch is from the wanted one, as a share; 0 when kept."""

    shape: Shape
    error: float

    def describe(self, wanted: Shape) -> str:
        """One line for people: the layout, and what became of the global batch."""
        shape, layout = self.shape, self.shape.layout
        text = f"{shape.nodes} of {wanted.nodes} nodes: dp {layout.dp}, sp {layout.sp}, zero {layout.zero}"
        if shape.accumulation is None:
            return text
        text += f", accumulation {shape.accumulation}"
        if shape.batch != wanted.batch:
            text += f", batch {shape.batch}"
        if not self.error:
            return text + "; the global batch is kept"
        return text + f"; the global batch becomes {shape.samples} instead of {wanted.samples}, no layout keeps it"


def shrink(wanted: Shape, nodes: int, least: int = 1, fits: Callable[[Shape], bool] = lambda shape: True) -> Fit | None:
    """The best shape on at most ``nodes`` nodes, not fewer than ``least``; None where none is legal.

    Before all, the global batch is kept; then more nodes are better, then the sequence parallelism of the job.
    fits: what else a shape must fulfil (memory).
    """
    found = [
        Fit(shape, abs(shape.samples - wanted.samples) / wanted.samples)
        for count in range(min(nodes, wanted.nodes), least - 1, -1)
        for shape in _shapes(wanted, count)
        if fits(shape)
    ]
    return min(found, key=lambda fit: (fit.error, -fit.shape.nodes, _distance(fit.shape, wanted)), default=None)


def _distance(shape: Shape, wanted: Shape) -> tuple[int, int]:
    return abs(shape.sp - wanted.sp), abs((shape.batch or 0) - (wanted.batch or 0))


def _shapes(wanted: Shape, nodes: int) -> Iterator[Shape]:
    """Legal shapes on exactly ``nodes`` nodes, each with the accumulation that comes nearest."""
    world = nodes * wanted.devices_per_node
    legal = [shape for sp in divisors(world) if (shape := replace(wanted, nodes=nodes, sp=sp)).legal]
    own = [shape for shape in legal if shape.sp == wanted.sp]
    # More sequence parallelism takes less memory; less of it is tried only where nothing else is legal.
    more = [shape for shape in legal if shape.sp > wanted.sp]
    for shape in own or more or legal:
        yield _accumulated(shape, wanted)


def _accumulated(shape: Shape, wanted: Shape) -> Shape:
    """With the accumulation that keeps the global batch, or comes nearest to it."""
    if wanted.accumulation is None:
        return shape
    dp = shape.layout.dp
    if wanted.replicas % dp == 0:
        return replace(shape, accumulation=wanted.replicas // dp)
    if not wanted.buckets and wanted.batch and wanted.samples % dp == 0:
        # Smaller batches, more of them: a micro batch never grows, nor does its memory.
        each = wanted.samples // dp
        batch = max(size for size in divisors(each) if size <= wanted.batch)
        return replace(shape, accumulation=each // batch, batch=batch)
    return replace(shape, accumulation=max(1, round(wanted.replicas / dp)))
