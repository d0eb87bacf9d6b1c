"""Seconds per training step of STDiT3 on this machine: PyNative against the whole step under ``ms.jit``.

``python bench/bench_stdit3.py [--size facts|demo-96|demo-128] [--mode pynative|jit] [--steps N] [--threads N]``
prints one JSON line a combination: seconds of the first step (with compilation), and of the others the median in
seconds and in processor seconds (the steadier number on a shared machine).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mindspore as ms
import numpy as np
from mindspore import Tensor

from models import optim
from models.config import DiffusionConfig, ModelConfig, OptimizerConfig
from models.diffusion.rflow import RFlow
from models.rng import stream
from models.stdit import build_model

Shape = tuple[int, int, int, int]


def sizes() -> dict[str, tuple[ModelConfig, Shape]]:
    """Model and latent shape [C, T, H, W] by name."""
    facts = ModelConfig(
        hidden_size=384, depth=4, num_heads=6, caption_channels=512, model_max_length=60, patch_size=(1, 2, 2)
    )
    demo = {
        f"demo-{hidden}": ModelConfig(
            in_channels=3, hidden_size=hidden, depth=2, num_heads=4, caption_channels=64, model_max_length=20,
            patch_size=(1, 4, 4),
        )
        for hidden in (96, 128)
    }  # fmt: skip
    return {"facts": (facts, (4, 8, 16, 16))} | {name: (model, (3, 8, 32, 56)) for name, model in demo.items()}


def batch(config: ModelConfig, shape: Shape) -> list[Tensor]:
    """One random batch of one sample, in the order of ``RFlow.loss``."""
    draw = stream(0, "bench").standard_normal
    text = (1, 1, config.model_max_length, config.caption_channels)
    arrays = [draw((1, *shape)), np.array([400.0]), draw((1, *shape)), draw(text)]
    tensors = [Tensor(array.astype(np.float32)) for array in arrays]
    tensors.append(Tensor(np.ones((1, config.model_max_length), np.int64)))
    tensors.append(Tensor(np.ones((1, shape[1]), bool)))
    return tensors + [Tensor(np.array([value], np.float32)) for value in (24.0, 256.0, 448.0)]


def measure(name: str, mode: str, steps: int) -> dict[str, object]:
    """Times forward, backward, clipping, AdamW and moving average together."""
    config, shape = sizes()[name]
    model = build_model(config, seed=0)
    params = model.trainable_params()
    optimizer, ema = optim.AdamW(params, OptimizerConfig()), optim.EMA(params, 0.999)
    flow = RFlow(DiffusionConfig())

    def mean_loss(*arguments: Tensor) -> Tensor:
        return flow.loss(model, *arguments).mean()

    value_and_grad = ms.value_and_grad(mean_loss, None, params)

    def step(hyper: Tensor, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        loss, grads = value_and_grad(*arguments)
        norm = optim.global_norm(grads)
        optimizer(optim.clip(grads, norm, 1.0), hyper)
        ema()
        return loss, norm

    run = ms.jit(step) if mode == "jit" else step
    data = batch(config, shape)
    times, processor = [], []
    for _ in range(steps + 1):
        begin, busy = time.perf_counter(), time.process_time()
        loss, norm = run(optimizer.advance(1e-4), *data)
        values = (float(loss.asnumpy()), float(norm.asnumpy()))
        times.append(time.perf_counter() - begin)
        processor.append(time.process_time() - busy)
    return {
        "size": name,
        "mode": mode,
        "parameters": sum(int(np.prod(p.shape)) for p in params),
        "first_step_seconds": round(times[0], 3),
        "seconds_per_step": round(statistics.median(times[1:]), 4),
        "cpu_seconds_per_step": round(statistics.median(processor[1:]), 4),
        "loss": values[0],
        "grad_norm": values[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(sizes()), action="append")
    parser.add_argument("--mode", choices=("pynative", "jit"), action="append")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    ms.set_context(runtime_num_threads=options.threads)
    for size in options.size or sorted(sizes()):
        for mode in options.mode or ("pynative", "jit"):
            print(json.dumps(measure(size, mode, options.steps)), flush=True)


if __name__ == "__main__":
    main()
