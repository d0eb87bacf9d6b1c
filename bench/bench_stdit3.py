"""Seconds of a training step of STDiT3 beside a PyTorch twin of the same model, in the same run.

``python -m bench stdit3`` (or ``python -m bench.bench_stdit3`` with options). Both get the same weights and the same
batch; before anything is timed their losses and gradient norms over five steps must agree. A step is forward, backward,
clipping and AdamW, in float32. The twin lives in a child process and steps take turns, so that noise of the machine
hits both alike. One JSON line an implementation: median, smallest and largest wall seconds a step, processor seconds,
and for ours the seconds of the first step, which compiles. The last line holds the ratios, ours over PyTorch's.

The twin needs torch (extra ``bench``): ``--torch-python`` names an interpreter that has it, ``--alone`` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from models import optim
from models.config import DiffusionConfig, ModelConfig, OptimizerConfig
from models.diffusion.rflow import RFlow
from models.rng import stream
from models.stdit import STDiT3, build_model

Shape = tuple[int, int, int, int]
Row = dict[str, float]

LR = 1e-4
CHECKED_STEPS = 5
AGREEMENT = 1e-4  # relative, of losses and gradient norms over the checked steps
TWIN = Path(__file__).with_name("torch_twin.py")


def sizes() -> dict[str, tuple[ModelConfig, Shape]]:
    """Model and latent shape [C, T, H, W] by name. ``facts``: 20.7 million parameters, 512 tokens."""
    facts = ModelConfig(hidden_size=384, depth=4, num_heads=6, caption_channels=512, model_max_length=60)
    demo = ModelConfig(
        in_channels=3, hidden_size=128, depth=2, num_heads=4, caption_channels=64, model_max_length=20,
        patch_size=(1, 4, 4),
    )  # fmt: skip
    return {"facts": (facts, (4, 8, 16, 16)), "demo": (demo, (3, 8, 32, 56))}


def batch(config: ModelConfig, shape: Shape) -> dict[str, np.ndarray]:
    """One random sample with a whole caption and no conditioning frames."""
    draw = stream(0, "bench").standard_normal
    arrays = {"x": draw((1, *shape)), "t": np.array([400.0]), "noise": draw((1, *shape))}
    arrays["y"] = draw((1, 1, config.model_max_length, config.caption_channels))
    arrays |= {"fps": np.array([24.0]), "height": np.array([256.0]), "width": np.array([448.0])}
    floats = {name: value.astype(np.float32) for name, value in arrays.items()}
    return floats | {"mask": np.ones((1, config.model_max_length), np.int64)}


def randomise(model: STDiT3) -> None:
    """Moves every weight off its initial value: the layers that start at zero would hide disagreement."""
    for param in model.trainable_params():
        noise = stream(1, "bench", param.name).standard_normal(tuple(param.shape)) * 0.02
        param.set_data(Tensor((param.asnumpy() + noise).astype(np.float32)))


class OurStep:
    """The training step under test. ``mode``: whole step compiled (``jit``) or eager (``pynative``)."""

    def __init__(self, model: STDiT3, inputs: dict[str, np.ndarray], mode: str) -> None:
        params = model.trainable_params()
        flow = RFlow(DiffusionConfig())
        self.optimizer = optim.AdamW(params, OptimizerConfig(lr=LR))
        order = ("x", "t", "noise", "y", "mask", None, "fps", "height", "width")
        self.inputs = [None if name is None else Tensor(inputs[name]) for name in order]

        def mean_loss(*arguments: Tensor | None) -> Tensor:
            return flow.loss(model, *arguments).mean()

        value_and_grad = ms.value_and_grad(mean_loss, None, params)
        optimizer = self.optimizer

        def step(hyper: Tensor, *arguments: Tensor | None) -> tuple[Tensor, Tensor]:
            loss, grads = value_and_grad(*arguments)
            norm = optim.global_norm(grads)
            optimizer(optim.clip(grads, norm, 1.0), hyper)
            return loss, norm

        self._step: Callable[..., tuple[Tensor, Tensor]] = ms.jit(step) if mode == "jit" else step

    def run(self) -> Row:
        """One step, timed."""
        begin, busy = time.perf_counter(), time.process_time()
        loss, norm = self._step(self.optimizer.advance(LR), *self.inputs)
        values = {"loss": float(loss.asnumpy()), "grad_norm": float(norm.asnumpy())}
        return {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - busy} | values


class TwinProcess:
    """The twin in a process of its own, which runs a step when told to."""

    def __init__(self, python: str, case: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [python, str(TWIN), str(case), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = str(self._line()["torch"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the PyTorch twin ended with code {self._process.wait()}; is torch installed? See --help")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self) -> Row:
        """One step, timed by the twin itself."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def write_case(path: Path, config: ModelConfig, model: STDiT3, inputs: dict[str, np.ndarray]) -> None:
    """What the twin loads: trained weights, batch, configuration."""
    weights = {f"weights/{param.name}": param.asnumpy() for param in model.trainable_params()}
    given = {f"inputs/{name}": value for name, value in inputs.items()}
    settings = json.dumps({"model": config.model_dump(mode="json"), "lr": LR})
    np.savez(path, config=np.asarray(settings), **weights, **given)


def check(ours: OurStep, twin: TwinProcess) -> tuple[Row, float]:
    """First steps of both: ours (compiles), and the largest relative difference of losses and norms."""
    first = ours.run()
    pairs = [(first, twin.run())] + [(ours.run(), twin.run()) for _ in range(CHECKED_STEPS - 1)]
    worst = max(abs(mine[key] / its[key] - 1) for mine, its in pairs for key in ("loss", "grad_norm"))
    if worst > AGREEMENT:
        raise SystemExit(f"not the same model: losses or gradient norms differ by {worst:.2g} of their size: {pairs}")
    return first, worst


def summary(rows: list[Row]) -> dict[str, float]:
    """Median, smallest and largest seconds, median processor seconds."""
    seconds = [row["seconds"] for row in rows]
    values = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    values["cpu_median"] = statistics.median(row["cpu_seconds"] for row in rows)
    values["cpu_min"] = min(row["cpu_seconds"] for row in rows)
    return {key: round(value, 4) for key, value in values.items()}


def compare(ours: OurStep, python: str, case: Path, steps: int, threads: int) -> None:
    """Interleaved steps of both; prints three lines."""
    twin = TwinProcess(python, case, threads)
    try:
        first, worst = check(ours, twin)
        pairs = [(ours.run(), twin.run()) for _ in range(steps)]
    finally:
        twin.close()
    mine, its = summary([pair[0] for pair in pairs]), summary([pair[1] for pair in pairs])
    print(json.dumps({"what": f"ostrain, MindSpore {ms.__version__}", "first": round(first["seconds"], 1)} | mine))
    print(json.dumps({"what": f"PyTorch {twin.version}"} | its))
    ratios = {f"ratio_{key}": round(mine[key] / its[key], 3) for key in ("median", "min", "cpu_median", "cpu_min")}
    paired = sorted(a["seconds"] / b["seconds"] for a, b in pairs)
    spread = [round(paired[len(paired) // 4], 3), round(paired[-1 - len(paired) // 4], 3)]
    print(json.dumps(ratios | {"ratio_quartiles": spread, "steps": steps, "largest_difference": float(f"{worst:.2g}")}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(sizes()), default="facts")
    parser.add_argument("--mode", choices=("pynative", "jit"), default="jit")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--alone", action="store_true", help="time ours only")
    options = parser.parse_args()
    if options.threads < 2:
        parser.error("MindSpore computes with its dispatching thread and at least one more: --threads is 2 or more")
    # One operator at a time, each with all threads: two at once get in each other's way, and more threads than cores
    # wait for one another. The dispatching thread computes as well.
    ms.runtime.dispatch_threads_num(1)
    ms.device_context.cpu.op_tuning.threads_num(options.threads - 1)
    config, shape = sizes()[options.size]
    model, inputs = build_model(config, seed=0), batch(config, shape)
    randomise(model)
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder) / "case.npz"
        write_case(case, config, model, inputs)
        ours = OurStep(model, inputs, options.mode)
        if not options.alone:
            compare(ours, options.torch_python, case, options.steps, options.threads)
            return
        first = ours.run()
        rows = [ours.run() for _ in range(options.steps)]
    print(
        json.dumps(
            {"what": f"ostrain, MindSpore {ms.__version__}", "first": round(first["seconds"], 1)} | summary(rows)
        )
    )


if __name__ == "__main__":
    main()
