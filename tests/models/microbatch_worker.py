"""One rank of a real group that encodes and decodes together: ``python -m tests.models.microbatch_worker FOLDER``.

FOLDER/rank-R.json out: for every case whether the result equals that of one rank alone, a sum to compare ranks by, and
what was sent. Started by msrun.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.rng import stream

# dtype, frames, samples, micro batch, whether frames of a chunk are shared.
CASES: list[tuple[str, int, int, int, bool | None]] = [
    ("float32", 1, 3, 2, None),
    ("float32", 18, 2, 5, None),
    ("float32", 35, 1, 8, False),
    ("float16", 35, 1, 8, True),
]


def main(folder: Path) -> None:
    from models.config import LayoutConfig
    from models.parallel.mesh import Mesh
    from models.parallel.ranks import start

    world = start()
    mesh = Mesh(world, LayoutConfig(sp=world.size))
    results = [run(mesh, *case) for case in CASES]
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(results))
    world.barrier()
    time.sleep(0.5)  # a rank that leaves while another still receives breaks that one's last collective


def run(mesh: Any, dtype: str, frames: int, samples: int, micro: int, share: bool | None) -> dict[str, Any]:
    """Encodes and decodes with convolutions, once on the group and once alone."""
    import mindspore as ms
    from mindspore import Tensor

    from models.parallel.group import Group
    from models.parallel.microbatch import decode, encode
    from models.parallel.traffic import Traffic

    kind = getattr(ms, dtype)
    x = Tensor(stream(5, "clip", frames).standard_normal((samples, 3, frames, 16, 8)).astype(np.float32)).astype(kind)
    spatial, temporal, untemporal, unspatial = coders(kind)

    def both(group: Group, shared: bool | None) -> list[np.ndarray]:
        z = encode(group, spatial, temporal, x, micro, 17, shared)
        pixels = decode(group, untemporal, unspatial, z, frames, micro, 17, share_frames=shared)
        return [z.asnumpy(), pixels.asnumpy()]

    mesh.traffic.take()
    found = both(mesh.sp_group, share)
    traffic = mesh.traffic.take()
    expected = both(Group([0], 0, Traffic()), None)
    return {
        "case": [dtype, frames, samples, micro, share],
        "shapes": [list(values.shape) for values in found],
        "equal": all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True)),
        "finite": all(bool(np.isfinite(values).all()) for values in found),
        "sum": hashlib.sha256(b"".join(values.tobytes() for values in found)).hexdigest(),
        "traffic": traffic,
    }


def coders(kind: Any) -> tuple[Callable[..., Any], ...]:
    """Spatial and temporal encoder, temporal and spatial decoder, with fixed weights."""
    from mindspore import Tensor
    from mindspore import ops as P

    def weight(*shape: int) -> Tensor:
        return Tensor(stream(6, "weight", *shape).standard_normal(shape).astype(np.float32) * 0.3).astype(kind)

    down, up = weight(4, 3, 4, 4), weight(3, 4, 3, 3)

    def spatial(x: Tensor, number: int) -> Tensor:
        return P.tanh(P.conv2d(x, down, stride=4))

    def temporal(x: Tensor, number: int) -> Tensor:
        spare = -x.shape[2] % 4
        if spare:
            x = P.concat([P.zeros((*x.shape[:2], spare, *x.shape[3:]), x.dtype), x], 2)
        grouped = x.reshape(*x.shape[:2], x.shape[2] // 4, 4, *x.shape[3:])
        return grouped.sum(3) * (0.1 * (number + 1))

    def untemporal(z: Tensor, number: int, frames: int) -> Tensor:
        repeated = P.stack([z] * 4, 3).reshape(*z.shape[:2], 4 * z.shape[2], *z.shape[3:])
        return repeated[:, :, :frames] * (0.1 * (number + 1))

    def unspatial(x: Tensor, number: int) -> Tensor:
        return P.conv2d(x, up, pad_mode="same")

    return spatial, temporal, untemporal, unspatial


if __name__ == "__main__":
    main(Path(sys.argv[1]))
