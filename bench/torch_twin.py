"""STDiT3 and its training step in plain PyTorch: the alternative ``bench_stdit3`` measures itself against.

The same function as :mod:`models.stdit` with the same parameter names, written the way PyTorch is fastest on a CPU:
fused attention, layer norm, GELU and AdamW. Imports torch and numpy, nothing of ostrain's payload.

``python torch_twin.py CASE.npz`` serves steps: each line on standard input runs one training step, each line on
standard output tells {"seconds", "cpu_seconds", "loss", "grad_norm"}. CASE.npz holds arrays ``weights/<name>``,
``inputs/<name>`` and a JSON text ``config``.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, heads, N, d]: neighbouring channels turned by cosines and sines [N, d]."""
    even, odd = x[..., ::2], x[..., 1::2]
    return x * rope[0] + torch.stack((-odd, even), -1).flatten(-2) * rope[1]


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = RMSNorm(dim // heads), RMSNorm(dim // heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear, self.kv_linear = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, text: Tensor, visible: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q_linear(x).view(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.kv_linear(text).view(b, text.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.attn, self.cross_attn = Attention(hidden, heads), CrossAttention(hidden, heads)
        self.mlp = Mlp(hidden, 4 * hidden, hidden)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, hidden))

    def forward(self, x: Tensor, y: Tensor, t: Tensor, visible: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        b, frames, space, c = x.shape
        parts = (self.scale_shift_table[None] + t.reshape(b, 6, c)).chunk(6, dim=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (part.view(b, 1, 1, c) for part in parts)
        inner = modulate(x, shift_a, scale_a)
        if self.temporal:
            inner = self.attn(inner.transpose(1, 2).reshape(b * space, frames, c), rope)
            inner = inner.view(b, space, frames, c).transpose(1, 2)
        else:
            inner = self.attn(inner.reshape(b * frames, space, c), None).view(b, frames, space, c)
        x = x + gate_a * inner
        x = x + self.cross_attn(x.reshape(b, -1, c), y, visible).view_as(x)
        return x + gate_m * self.mlp(modulate(x, shift_m, scale_m))


class Embedder(nn.Module):
    """Scalars [N] -> [N, hidden]: 128 cosines and sines through a two-layer perceptron."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, values: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128)
        angles = values[:, None] * frequencies[None]
        return self.mlp(torch.cat((angles.cos(), angles.sin()), -1))


class Final(nn.Module):
    def __init__(self, hidden: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, out)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, hidden))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table[None] + t[:, None]).chunk(2, dim=1)
        return self.linear(modulate(x, shift[:, None], scale[:, None]))


class Twin(nn.Module):
    """latents [B, C, T, H, W] -> [B, 2 C, T, H, W]; sides are multiples of the patch."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, heads, depth = config["hidden_size"], config["num_heads"], config["depth"]
        self.patch, self.channels, self.base = (
            tuple(config["patch_size"]),
            config["in_channels"],
            config["input_sq_size"],
        )
        volume = math.prod(self.patch)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv3d(self.channels, hidden, self.patch, stride=self.patch)})
        self.t_embedder, self.fps_embedder = Embedder(hidden), Embedder(hidden)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.y_embedder = nn.ModuleDict({"y_proj": Mlp(config["caption_channels"], hidden, hidden)})
        self.spatial_blocks = nn.ModuleList(Block(hidden, heads, False) for _ in range(depth))
        self.temporal_blocks = nn.ModuleList(Block(hidden, heads, True) for _ in range(depth))
        self.final_layer = Final(hidden, volume * 2 * self.channels)
        self.head_dim, self.hidden = hidden // heads, hidden

    def positions(self, rows: int, columns: int, scale: float) -> Tensor:
        """[1, 1, rows * columns, hidden]: sines and cosines of the column, then of the row."""
        base = round((rows * columns) ** 0.5)
        frequencies = 1 / 10000 ** (torch.arange(self.hidden // 4, dtype=torch.float32) / (self.hidden // 4))

        def side(count: int) -> Tensor:
            angles = (torch.arange(count) / scale * (base / count))[:, None] * frequencies[None]
            return torch.cat((angles.sin(), angles.cos()), -1)

        across = side(columns)[None].expand(rows, -1, -1)
        down = side(rows)[:, None].expand(-1, columns, -1)
        return torch.cat((across, down), -1).reshape(1, 1, rows * columns, self.hidden)

    def rope(self, frames: int) -> tuple[Tensor, Tensor]:
        frequencies = 1 / 10000 ** (torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)
        angles = (torch.arange(frames)[:, None] * frequencies[None]).repeat_interleave(2, -1)
        return angles.cos(), angles.sin()

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, mask: Tensor, fps: Tensor, height: Tensor, width: Tensor
    ) -> Tensor:
        b, _, frames, rows, columns = x.shape
        pt, ph, pw = self.patch
        grid = (frames // pt, rows // ph, columns // pw)
        scale = math.sqrt(float(height[0] * width[0])) / self.base
        embedded = self.x_embedder["proj"](x).flatten(3).permute(0, 2, 3, 1)
        tokens = (embedded + self.positions(grid[1], grid[2], scale)).contiguous()
        time_features = self.t_embedder(t) + self.fps_embedder(fps)
        modulation = self.t_block(time_features)
        text = self.y_embedder["y_proj"](y.flatten(1, 2))
        visible = (mask != 0)[:, None, None, :]
        rope = self.rope(grid[0])
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            tokens = temporal(spatial(tokens, text, modulation, visible, rope), text, modulation, visible, rope)
        out = self.final_layer(tokens, time_features).view(b, *grid, pt, ph, pw, -1)
        return out.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(b, -1, frames, rows, columns)


class TwinStep:
    """Loss of the rectified flow, gradients, clipping, AdamW."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
        self.inputs, self.lr = inputs, config["lr"]
        self.model = Twin(config["model"])
        self.model.load_state_dict(weights)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr, weight_decay=0.0, fused=True)

    def run(self) -> tuple[float, float]:
        """(loss, gradient norm) of one step."""
        data = self.inputs
        x, noise, t = data["x"], data["noise"], data["t"]
        keep = (1 - t / 1000).view(-1, 1, 1, 1, 1)
        self.optimizer.zero_grad(set_to_none=True)
        noised = keep * x + (1 - keep) * noise
        out = self.model(noised, t, data["y"], data["mask"], data["fps"], data["height"], data["width"])
        loss = F.mse_loss(out[:, : x.shape[1]], x - noise)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach()), float(norm)


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    with np.load(path) as case:
        arrays = {key: case[key] for key in case.files}
    config = json.loads(str(arrays.pop("config")))
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}}
    for key, value in arrays.items():
        group, name = key.split("/", 1)
        groups[group][name] = torch.from_numpy(value)
    step = TwinStep(config, groups["weights"], groups["inputs"])
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        begin, busy = time.perf_counter(), time.process_time()
        loss, norm = step.run()
        row = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - busy}
        print(json.dumps(row | {"loss": loss, "grad_norm": norm}), flush=True)


if __name__ == "__main__":
    main()
