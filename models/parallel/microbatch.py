"""A video autoencoder's work spread over a group of ranks; results equal the serial ones bit for bit.

Autoencoders work in *pieces*, to save memory: micro batches of frames where every frame is coded by itself (spatial),
chunks of ``micro_frame_size`` frames, the last one shorter, where time is coded (temporal). The pieces depend on sizes
only, never on the number of ranks: ranks take runs of consecutive pieces, as equal as whole pieces allow (counts differ
by one at most, idle ranks are allowed), and put the results together in order. So a rank computes exactly what one
process would, for any number of frames. Upstream: opensora/models/vae/vae.py, ``VideoAutoencoderKL`` and
``OpenSoraVAE_V1_2``, whose parallel form needs frames / ranks to be a multiple of 17.

Every rank of the group passes the same whole input and gets the same whole result. Coders are called as
``coder(x, number)``: the piece's number, counted from 0, the same under every layout and so a key for whatever noise
the coder draws (:func:`models.rng.stream`). They must not use collectives. There are no gradients: the autoencoder is
frozen. Inputs may have any dtype; results have the coders' dtype.

What is sent (counted by the group's Traffic; a group of one sends nothing), for each joining of results:

* one all_gather of 6 float32 a rank: dtype and shape of what it holds, since an idle rank cannot know them;
* one all_gather of the results, padded with zeros to those of the rank that holds most.

Each function says how often results are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models.parallel.group import Group

# (piece, its number) -> result.
Coder = Callable[[Tensor, int], Tensor]
# (chunk of latents, its number, frames wanted) -> frames.
ChunkDecoder = Callable[[Tensor, int, int], Tensor]

_DTYPES = (ms.float32, ms.float16, ms.bfloat16)
_AXES = 5


@dataclass(frozen=True)
class Micro:
    """A micro batch: rows [start, stop) of the samples x frames of the span [first, last) of frames."""

    number: int
    first: int
    last: int
    start: int
    stop: int


def encode_frames(group: Group, encode: Coder, x: Tensor, micro_batch: int | None) -> Tensor:
    """x [B, C, T, H, W] -> [B, C', T, H', W'], frame by frame; for decoding as well.

    encode: [N, C, H, W] -> [N, C', H', W'] with N frames, ``micro_batch`` of them at most (None: all at once), in the
    order of samples, then time. Results are joined once: the latents.
    """
    spans = [(0, x.shape[2])]
    rows = _spread(group, _frame_jobs(encode, x, spans, micro_batch), axis=0)
    return _as_video(rows, x.shape[0])


def encode_chunks(group: Group, encode: Coder, x: Tensor, chunk: int | None) -> Tensor:
    """x [B, C, T, H, W] -> [B, C', T', H', W'], chunks of ``chunk`` frames (None: all) one after the other.

    encode: [B, C, n, H, W] -> [B, C', n', H', W'] of one chunk. Results are joined once: the latents.
    """
    return _spread(group, _chunk_jobs(encode, x, chunk_spans(x.shape[2], chunk)), axis=2)


def decode_chunks(
    group: Group, decode: ChunkDecoder, z: Tensor, frames: int, chunk: int | None, ratio: int = 4
) -> Tensor:
    """The reverse of :func:`encode_chunks`: z [B, C, T', H, W] -> [B, C', frames, H', W'].

    decode: ([B, C, n', H, W], number, n) -> [B, C', n, H', W']. A chunk of n frames has ceil(n / ratio) latents.
    Results are joined once: the frames. ValueError if z does not have the latents of ``frames`` frames.
    """
    spans = chunk_spans(frames, chunk)
    return _spread(group, _decode_jobs(decode, z, spans, ratio), axis=2)


def encode(
    group: Group,
    spatial: Coder,
    temporal: Coder,
    x: Tensor,
    micro_batch: int | None,
    chunk: int | None,
    share_frames: bool | None = None,
) -> Tensor:
    """:func:`encode_frames`, then :func:`encode_chunks`, as in OpenSoraVAE_V1_2. Micro batches never cross chunks.

    A rank runs both over its chunks, and only the latents are joined. With ``share_frames`` the frames of a chunk are
    spread as well: latents of all frames are joined before the temporal encoder, and its results after it. None: where
    there are fewer chunks than ranks (images, short clips). The results are the same either way.
    """
    spans = chunk_spans(x.shape[2], chunk)
    if _shares(group, spans, share_frames):
        rows = _spread(group, _frame_jobs(spatial, x, spans, micro_batch), axis=0)
        jobs = [_on_rows(temporal, rows, number, x.shape[0], span) for number, span in enumerate(spans)]
        return _spread(group, jobs, axis=2)

    def both(number: int) -> Callable[[], Tensor]:
        first = number * _micro_count(x.shape[0], spans[0], micro_batch)
        jobs = _frame_jobs(spatial, x, spans[number : number + 1], micro_batch, first)
        return lambda: temporal(_as_video(_joined([job() for job in jobs], 0), x.shape[0]), number)

    return _spread(group, [both(number) for number in range(len(spans))], axis=2)


def decode(
    group: Group,
    temporal: ChunkDecoder,
    spatial: Coder,
    z: Tensor,
    frames: int,
    micro_batch: int | None,
    chunk: int | None,
    ratio: int = 4,
    share_frames: bool | None = None,
) -> Tensor:
    """:func:`decode_chunks`, then :func:`encode_frames` with a decoder: z [B, C, T', h, w] -> [B, C', frames, H, W].

    A rank runs both over its chunks, and only the frames are joined. ``share_frames``: as in :func:`encode`; what the
    temporal decoder gave is joined, then the frames.
    """
    samples, spans = z.shape[0], chunk_spans(frames, chunk)
    first_steps = _decode_jobs(temporal, z, spans, ratio)
    if _shares(group, spans, share_frames):
        video = _spread(group, first_steps, axis=2)
        rows = _spread(group, _frame_jobs(spatial, video, spans, micro_batch), axis=0)
        return _joined([_as_video(_rows_of(rows, samples, span), samples) for span in spans], 2)

    def both(number: int) -> Tensor:
        video = first_steps[number]()
        first = number * _micro_count(samples, spans[0], micro_batch)
        jobs = _frame_jobs(spatial, video, [(0, video.shape[2])], micro_batch, first)
        return _as_video(_joined([job() for job in jobs], 0), samples)

    return _spread(group, [_bound(both, number) for number in range(len(spans))], axis=2)


def chunk_spans(frames: int, chunk: int | None) -> list[tuple[int, int]]:
    """[first, last) frames of every chunk; ValueError without frames."""
    if frames < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"cannot cut {frames} frames into chunks of {chunk}")
    width = chunk or frames
    return [(first, min(first + width, frames)) for first in range(0, frames, width)]


def own_pieces(count: int, ranks: int, rank: int) -> tuple[int, int]:
    """[first, last) of ``count`` pieces that a rank computes.

    The last rank never has fewer pieces than another: the shortest piece, the last one, is among them.
    """
    return count * rank // ranks, count * (rank + 1) // ranks


def _shares(group: Group, spans: Sequence[tuple[int, int]], wanted: bool | None) -> bool:
    return group.size > 1 and (len(spans) < group.size if wanted is None else wanted)


def _bound(function: Callable[[int], Tensor], number: int) -> Callable[[], Tensor]:
    return lambda: function(number)


def _chunk_jobs(encode: Coder, x: Tensor, spans: Sequence[tuple[int, int]]) -> list[Callable[[], Tensor]]:
    def run(number: int) -> Tensor:
        first, last = spans[number]
        return encode(x[:, :, first:last], number)

    return [_bound(run, number) for number in range(len(spans))]


def _decode_jobs(
    decode: ChunkDecoder, z: Tensor, spans: Sequence[tuple[int, int]], ratio: int
) -> list[Callable[[], Tensor]]:
    counts = [-(-(last - first) // ratio) for first, last in spans]
    if z.shape[2] != sum(counts):
        raise ValueError(f"{spans[-1][1]} frames in {len(spans)} chunks have {sum(counts)} latents, not {z.shape[2]}")
    width = counts[0]

    def run(number: int) -> Tensor:
        first, last = spans[number]
        return decode(z[:, :, number * width : number * width + counts[number]], number, last - first)

    return [_bound(run, number) for number in range(len(spans))]


def _micro_count(samples: int, span: tuple[int, int], micro_batch: int | None) -> int:
    rows = samples * (span[1] - span[0])
    return -(-rows // (micro_batch or rows))


def _frame_jobs(
    encode: Coder, x: Tensor, spans: Sequence[tuple[int, int]], micro_batch: int | None, number: int = 0
) -> list[Callable[[], Tensor]]:
    """One job a micro batch; ``number``: of the first one."""
    micros = micro_batches(x.shape[0], spans, micro_batch, number)

    def run(place: int) -> Tensor:
        return encode(rows_of(x, micros[place]), micros[place].number)

    return [_bound(run, place) for place in range(len(micros))]


def micro_batches(
    samples: int, spans: Sequence[tuple[int, int]], micro_batch: int | None, number: int = 0
) -> list[Micro]:
    """The micro batches of ``samples`` clips whose frames are coded span by span; ``number``: of the first one."""
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"micro batches of {micro_batch} frames")
    micros: list[Micro] = []
    for first, last in spans:
        rows = samples * (last - first)
        size = micro_batch or rows
        for start in range(0, rows, size):
            micros.append(Micro(number + len(micros), first, last, start, min(start + size, rows)))
    return micros


def rows_of(x: Tensor, micro: Micro) -> Tensor:
    """The frames of a micro batch of x [B, C, T, H, W]: [N, C, H, W]; samples one after the other."""
    length, parts = micro.last - micro.first, []
    for sample in range(micro.start // length, -(-micro.stop // length)):
        begin = micro.first + max(0, micro.start - sample * length)
        end = micro.first + min(length, micro.stop - sample * length)
        parts.append(x[sample, :, begin:end].transpose(1, 0, 2, 3))
    return _joined(parts, 0)


def _as_video(rows: Tensor, samples: int) -> Tensor:
    """[B * T, C, H, W] -> [B, C, T, H, W]"""
    return rows.reshape(samples, rows.shape[0] // samples, *rows.shape[1:]).transpose(0, 2, 1, 3, 4)


def _rows_of(rows: Tensor, samples: int, span: tuple[int, int]) -> Tensor:
    """The rows of one chunk, where chunks follow each other."""
    return rows[samples * span[0] : samples * span[1]]


def _on_rows(temporal: Coder, rows: Tensor, number: int, samples: int, span: tuple[int, int]) -> Callable[[], Tensor]:
    return lambda: temporal(_as_video(_rows_of(rows, samples, span), samples), number)


def _spread(group: Group, jobs: Sequence[Callable[[], Tensor]], axis: int) -> Tensor:
    """Runs this rank's jobs and joins the results of all along ``axis``, on every rank."""
    first, last = own_pieces(len(jobs), group.size, group.rank)
    own = [job() for job in jobs[first:last]]
    held = _joined(own, axis) if own else None
    if group.size == 1:
        assert held is not None
        return held
    dtype, shapes = _described(group, held, axis)
    sizes = [int(np.prod(shape, dtype=np.int64)) if shape else 0 for shape in shapes]
    width = max(sizes)
    parts = [] if held is None else [held.reshape(-1)]
    spare = width - sizes[group.rank]
    if spare:
        parts.append(P.zeros((spare,), dtype))
    rows = group.all_gather(_joined(parts, 0)).reshape(group.size, width)
    # Every row is used up to its rank's size: padding ends here.
    found = [rows[rank, :size].reshape(shapes[rank]) for rank, size in enumerate(sizes) if size]
    return _joined(found, axis)


def _described(group: Group, held: Tensor | None, axis: int) -> tuple[ms.Type, list[tuple[int, ...]]]:
    """dtype and shape of what every rank holds, () for nothing; RuntimeError, everywhere, where they do not fit."""
    told = np.zeros(1 + _AXES, np.float32)
    if held is not None:
        if held.dtype not in _DTYPES:
            raise TypeError(f"a coder gave {held.dtype}; what travels between ranks is one of {_DTYPES}")
        told[0] = 1 + _DTYPES.index(held.dtype)
        told[1 : 1 + held.ndim] = held.shape
    numbers = group.all_gather(Tensor(told)).asnumpy().reshape(group.size, 1 + _AXES).astype(np.int64)
    shapes = [tuple(int(size) for size in row[1:] if size) for row in numbers]
    kinds = {
        (int(row[0]), *shape[:axis], *shape[axis + 1 :]) for row, shape in zip(numbers, shapes, strict=True) if row[0]
    }
    if len(kinds) > 1:
        told_by = ", ".join(f"rank {rank}: {shape}" for rank, shape in zip(group.ranks, shapes, strict=True))
        raise RuntimeError(f"ranks hold results that do not fit together ({told_by}; or their dtypes differ)")
    return _DTYPES[int(numbers[:, 0].max()) - 1], shapes


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else P.concat(list(parts), axis)
