"""The autoencoder's work spread over ranks against plain loops, bit for bit.

The sweep over all sizes runs on numpy arrays, ranks being threads; a few sizes run on tensors, and two real ranks.
"""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from models import cost
from models.config import AutoencoderConfig
from models.parallel import microbatch
from models.parallel.group import Group
from models.parallel.traffic import Traffic
from models.rng import stream
from tests.models.microbatch_worker import CASES
from tests.models.runs import environment

pytestmark = pytest.mark.train

FRAMES = range(1, 71)
MICRO = [1, 2, 3, 4, 5, 17]


class Array(np.ndarray):
    """An array with what the module asks of a tensor."""

    def asnumpy(self) -> np.ndarray:
        return np.asarray(self)


def concatenated(parts: Sequence[np.ndarray], axis: int = 0) -> Array:
    return np.concatenate(parts, axis).view(Array)


class Gathering(Group):
    """One of several ranks that are threads of this process and meet in all_gather."""

    def __init__(self, rank: int, barrier: threading.Barrier, board: list[Any], turn: Any, join: Any) -> None:
        super().__init__([rank], 0, Traffic())
        self.ranks, self.size, self.rank = tuple(range(barrier.parties)), barrier.parties, rank
        self._barrier, self._board, self._turn, self._join = barrier, board, turn, join

    def all_gather(self, x: Any) -> Any:
        self._count("all_gather", x)
        self._board[self.rank] = x
        self._meet()
        assert len({part.shape for part in self._board}) == 1, "ranks gather different sizes"
        whole = self._join(list(self._board))
        self._meet()
        return whole

    def _meet(self) -> None:
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()


def on_ranks(size: int, work: Callable[[Group], Any], join: Any = concatenated) -> list[Any]:
    """``work`` on every rank; one runs at a time, in threads that change at collectives only."""
    barrier, board, turn = threading.Barrier(size, timeout=60), [None] * size, threading.Lock()

    def one(rank: int) -> Any:
        with turn:
            try:
                return work(Gathering(rank, barrier, board, turn, join))
            except BaseException:
                barrier.abort()
                raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module on numpy arrays: a sweep over thousands of sizes takes seconds."""
    shim = SimpleNamespace(concat=concatenated, zeros=lambda shape, dtype: np.zeros(shape, dtype).view(Array))
    monkeypatch.setattr(microbatch, "P", shim)
    monkeypatch.setattr(microbatch, "Tensor", lambda values: values.view(Array))
    monkeypatch.setattr(microbatch, "_DTYPES", (np.dtype(np.float32), np.dtype(np.float16)))


@functools.cache
def clip(frames: int, samples: int = 2) -> np.ndarray:
    return stream(3, "clip", frames).standard_normal((samples, 3, frames, 4, 2)).astype(np.float32)


def spatial(x: np.ndarray, number: int) -> np.ndarray:
    """[N, C, H, W] -> [N, 2, H/2, W/2]; depends on the place in the batch, its length and its number."""
    place = np.arange(len(x), dtype=np.float32).reshape(-1, 1, 1, 1)
    result: np.ndarray = np.tanh(x[:, :2, ::2, ::2] * np.float32(1.3)) + place + np.float32(10 * len(x) + 0.1 * number)
    return result


def temporal(x: np.ndarray, number: int) -> np.ndarray:
    """[B, C, n, H, W] -> [B, C, ceil(n / 4), H, W]; every latent depends on the chunk's frames before it."""
    return np.cumsum(x, 2)[:, :, ::4] + np.float32(x.shape[2] + 100 * number)


def untemporal(z: np.ndarray, number: int, frames: int) -> np.ndarray:
    """[B, C, n', H, W] -> [B, C, frames, H, W]"""
    return np.cumsum(np.repeat(z, 4, 2)[:, :, :frames], 2) + np.float32(frames + 100 * number)


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts, 2)


def serial_frames(code: Any, x: np.ndarray, micro: int | None, first: int = 0) -> np.ndarray:
    """Frame-wise, as one process does it; ``first``: number of the first micro batch."""
    samples, _, frames = x.shape[:3]
    rows = np.moveaxis(x, 2, 1).reshape(samples * frames, *x.shape[1:2], *x.shape[3:])
    size = micro or len(rows)
    parts = [code(rows[start : start + size], first + start // size) for start in range(0, len(rows), size)]
    coded = np.concatenate(parts)
    return np.moveaxis(coded.reshape(samples, frames, *coded.shape[1:]), 1, 2)


def serial_encode(x: np.ndarray, micro: int | None, chunk: int | None) -> np.ndarray:
    parts, count, width = [], 0, chunk or x.shape[2]
    for number, first in enumerate(range(0, x.shape[2], width)):
        part = x[:, :, first : first + width]
        parts.append(temporal(serial_frames(spatial, part, micro, count), number))
        count += -(-x.shape[0] * part.shape[2] // (micro or x.shape[0] * part.shape[2]))
    return joined(parts)


def serial_decode(z: np.ndarray, frames: int, micro: int | None, chunk: int | None) -> np.ndarray:
    parts, count, width, place = [], 0, chunk or frames, 0
    for number, first in enumerate(range(0, frames, width)):
        length = min(width, frames - first)
        latents = -(-length // 4)
        video = untemporal(z[:, :, place : place + latents], number, length)
        parts.append(serial_frames(spatial, video, micro, count))
        place += latents
        count += -(-z.shape[0] * length // (micro or z.shape[0] * length))
    return joined(parts)


def cases() -> Iterator[tuple[int, int | None, int | None]]:
    """Frames, micro batch, chunk."""
    for frames in FRAMES:
        yield from ((frames, micro, 17) for micro in MICRO[:5])
        yield from ((frames, 3, 5), (frames, None, 17), (frames, 4, None))


def latents(frames: int, chunk: int | None) -> np.ndarray:
    count = sum(-(-min(chunk or frames, frames - first) // 4) for first in range(0, frames, chunk or frames))
    return clip(count)


# What the plain loops give for all sizes, worked out once.
@functools.cache
def framewise() -> dict[tuple[int, int | None], np.ndarray]:
    return {(t, micro): serial_frames(spatial, clip(t), micro) for t in FRAMES for micro in [*MICRO, None]}


@functools.cache
def encoded() -> dict[tuple[int, int | None, int | None], np.ndarray]:
    return {case: serial_encode(clip(case[0]), *case[1:]) for case in cases()}


@functools.cache
def decoded() -> dict[tuple[int, int | None, int | None], np.ndarray]:
    return {case: serial_decode(latents(case[0], case[2]), *case) for case in cases()}


def same(found: Any, expected: np.ndarray) -> None:
    values = np.asarray(found)
    assert values.dtype == expected.dtype
    assert values.shape == expected.shape
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.usefixtures("arrays")
def test_frames_for_all_sizes(ranks: int) -> None:
    expected = framewise()

    def work(group: Group) -> None:
        for (frames, micro), values in expected.items():
            same(microbatch.encode_frames(group, spatial, clip(frames).view(Array), micro), values)

    on_ranks(ranks, work)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.usefixtures("arrays")
def test_chunks_for_all_sizes(ranks: int) -> None:
    def work(group: Group) -> None:
        for frames in FRAMES:
            x = clip(frames)
            for chunk in (*MICRO, None):
                width = chunk or frames
                cuts = [x[:, :, first : first + width] for first in range(0, frames, width)]
                coded = joined([temporal(cut, number) for number, cut in enumerate(cuts)])
                same(microbatch.encode_chunks(group, temporal, x.view(Array), chunk), coded)
                z = latents(frames, chunk)
                per, counts = -(-width // 4), [cut.shape[2] for cut in cuts]
                video = [untemporal(z[:, :, n * per : (n + 1) * per], n, count) for n, count in enumerate(counts)]
                same(microbatch.decode_chunks(group, untemporal, z.view(Array), frames, chunk), joined(video))

    on_ranks(ranks, work)


@pytest.mark.parametrize(("ranks", "share"), [(1, None), *[(p, share) for p in (2, 3, 4) for share in (False, True)]])
@pytest.mark.usefixtures("arrays")
def test_both_for_all_sizes(ranks: int, share: bool | None) -> None:
    expected = encoded()

    def work(group: Group) -> None:
        for (frames, micro, chunk), values in expected.items():
            x = clip(frames).view(Array)
            same(microbatch.encode(group, spatial, temporal, x, micro, chunk, share), values)

    on_ranks(ranks, work)


@pytest.mark.parametrize(("ranks", "share"), [(1, None), *[(p, share) for p in (2, 3, 4) for share in (False, True)]])
@pytest.mark.usefixtures("arrays")
def test_decoding_for_all_sizes(ranks: int, share: bool | None) -> None:
    expected = decoded()

    def work(group: Group) -> None:
        for (frames, micro, chunk), values in expected.items():
            z = latents(frames, chunk).view(Array)
            found = microbatch.decode(group, untemporal, spatial, z, frames, micro, chunk, share_frames=share)
            same(found, values)

    on_ranks(ranks, work)


@pytest.mark.usefixtures("arrays")
def test_latents_have_the_size_the_cost_model_says() -> None:
    config = AutoencoderConfig(micro_frame_size=17)

    def work(group: Group) -> None:
        for frames in FRAMES:
            coded = microbatch.encode_chunks(group, temporal, clip(frames).view(Array), config.micro_frame_size)
            assert coded.shape[2] == cost.latent_size(config, frames, 64, 64)[0]

    on_ranks(2, work)


@pytest.mark.parametrize(("frames", "share"), [(70, False), (70, True), (16, None)])
@pytest.mark.usefixtures("arrays")
def test_what_is_sent(frames: int, share: bool | None) -> None:
    """Latents of the rank that has most, and 24 bytes that describe them, for each joining."""
    ranks, micro = 3, 4

    def work(group: Group) -> tuple[Any, list[int]]:
        calls: list[int] = []

        def counted(x: np.ndarray, number: int) -> np.ndarray:
            calls.append(len(x))
            return spatial(x, number)

        microbatch.encode(group, counted, temporal, clip(frames).view(Array), micro, 17, share)
        return group.traffic.take(), calls

    results = on_ranks(ranks, work)
    # Chunks of 70 frames: 17 17 17 17 2, of which ranks have 1, 2 and 2: 5, 10 and 6 latents of 2 x 2 x 2 x 1 floats.
    latents_sent = {70: 10, 16: 4}[frames] * 8 * 4
    # Micro batches of 4 of 2 x 70 frames: 4 x 9 and 1; 12, 12 and 13. Of 2 x 16: 8; 2, 3 and 3. 2 x 2 x 1 floats each.
    frames_sent = {70: 48, 16: 12}[frames] * 4 * 4
    shared = share is not False
    sent = 2 * (24 + latents_sent) + (2 * (24 + frames_sent) if shared else 0)
    assert [traffic for traffic, _ in results] == [{"all_gather": (4 if shared else 2, sent)}] * ranks
    # What travels is padded; what is computed is not.
    assert sum(sum(calls) for _, calls in results) == 2 * frames
    assert all(calls for _, calls in results) or not shared


@pytest.mark.usefixtures("arrays")
def test_results_that_do_not_fit_together_stop_every_rank() -> None:
    def work(group: Group) -> str:
        def code(x: np.ndarray, number: int) -> np.ndarray:
            return x[:, :, :, : 1 + group.rank]

        with pytest.raises(RuntimeError, match="do not fit together") as caught:
            microbatch.encode_chunks(group, code, clip(40).view(Array), 17)
        return str(caught.value)

    messages = on_ranks(2, work)
    assert messages[0] == messages[1]
    assert "rank 1: (2, 3, 23, 2, 2)" in messages[0]


def test_sizes_that_cannot_be() -> None:
    alone = Group([0], 0, Traffic())
    z = Tensor(clip(6))
    with pytest.raises(ValueError, match="18 frames in 2 chunks have 6 latents, not 5"):
        microbatch.decode_chunks(alone, untemporal, z[:, :, :5], 18, 17)
    with pytest.raises(ValueError, match="0 frames"):
        microbatch.chunk_spans(0, 17)
    with pytest.raises(ValueError, match="micro batches of 0"):
        microbatch.encode_frames(alone, spatial, z, 0)


def of_tensors(code: Any) -> Any:
    return lambda x, *numbers: Tensor(code(x.asnumpy(), *numbers))


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
@pytest.mark.parametrize("ranks", [1, 3])
def test_on_tensors(ranks: int, dtype: ms.Type) -> None:
    cut = np.dtype(np.float32 if dtype == ms.float32 else np.float16)

    def cast(code: Any) -> Any:
        return of_tensors(lambda x, *numbers: code(x, *numbers).astype(cut))

    def work(group: Group) -> list[np.ndarray]:
        results = []
        for frames, share in ((1, None), (18, None), (36, False)):
            x = Tensor(clip(frames))
            coded = microbatch.encode(group, of_tensors(spatial), cast(temporal), x, 5, 17, share)
            results.append(coded.asnumpy())
            z = Tensor(latents(frames, 17))
            decoded = microbatch.decode(group, of_tensors(untemporal), cast(spatial), z, frames, 5, 17, 4, share)
            results.append(decoded.asnumpy())
        return results

    if ranks == 1:
        group = Group([0], 0, Traffic())
        results = [work(group)]
        assert group.traffic.take() == {}
    else:
        results = on_ranks(ranks, work, join=ms.ops.concat)
    for result in results:
        for place, frames in enumerate((1, 18, 36)):
            same(result[2 * place], serial_encode(clip(frames), 5, 17).astype(cut))
            same(result[2 * place + 1], serial_decode(latents(frames, 17), frames, 5, 17).astype(cut))


def start_two(folder: Path) -> None:
    """Two real ranks under msrun, to their end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["msrun", "--worker_num=2", "--local_worker_num=2", f"--master_port={port}", "--join=True"]
    command += [f"--log_dir={folder}", "python", "-m", "tests.models.microbatch_worker", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(120)
        finally:
            if process.poll() is None:
                process.send_signal(2)  # msrun ends its workers on SIGINT only
                process.wait(60)
    said = "\n".join(f"--- {file.name}\n{file.read_text()[-2000:]}" for file in [*folder.glob("*.log"), folder / "log"])
    assert code == 0, said


def test_two_real_ranks(tmp_path: Path) -> None:
    start_two(tmp_path)
    results = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert results[0] == results[1]
    assert [found["case"] for found in results[0]] == [list(case) for case in CASES]
    for found in results[0]:
        _, frames, samples, _, share = found["case"]
        latent = cost.latent_size(AutoencoderConfig(), frames, 64, 64)[0]
        assert found["shapes"] == [[samples, 4, latent, 4, 2], [samples, 3, frames, 4, 2]]
        assert found["equal"] and found["finite"], found
        shared = share or (share is None and frames == 1)
        assert found["traffic"]["all_gather"][0] == (8 if shared else 4)
