"""Autoencoders as training, sampling and caching use them: frozen, in pieces, alone or spread over a group of ranks.

Every rank of a group passes the same pixels, noise and latents, and gets the same results: those of one process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as P

from models import ops
from models.config import AutoencoderConfig
from models.exits import BAD_DATA, PayloadError
from models.layers.linear import as_dtype
from models.parallel import microbatch
from models.parallel.group import Group
from models.parallel.traffic import Traffic
from models.vae.autoencoder_kl import VideoAutoencoderKL
from models.vae.distribution import deviation, draw, mean_and_logvar
from models.vae.pipeline import VideoAutoencoderPipeline
from models.vae.tiling import Tiles

# One array [B, C, ...] for each of AutoencoderConfig.noise_shapes.
Noise = Sequence[np.ndarray | Tensor]


class Autoencoder(ABC):
    """Pixels float32 [B, 3, T, H, W] in [-1, 1] to latents float32 [B, C, t, h, w], and back.

    ``cache_scale``: latents are (mean + std * noise) * cache_scale with :meth:`posterior`'s mean and std. ``dtype``:
    what is computed in; ``note``: why that is not what the configuration says, or empty.
    """

    def __init__(self, config: AutoencoderConfig, group: Group | None) -> None:
        self.config = config
        self.group = group or Group([0], 0, Traffic())
        on_cpu = ops.device_target() == "CPU"
        self.dtype = "fp32" if on_cpu else config.dtype
        self.note = ""
        if self.dtype != config.dtype and config.type != "identity":
            self.note = f"autoencoder in {self.dtype}: the CPU has no {config.dtype} kernels"
        self.patch_size = config.patch_size
        self.out_channels = config.latent_channels
        self.cache_scale = 1.0

    @abstractmethod
    def encode(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Latents as models train on them: drawn with ``noise`` (:meth:`draw_noise`), else the means."""

    @abstractmethod
    def posterior(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each [B, C, t, h, w], before ``cache_scale``.

        For latents of clips image latents come first: drawn with the first of ``noise``, else their means.
        """

    @abstractmethod
    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """Latents -> pixels [B, 3, num_frames, H, W], not clamped. PayloadError where the frames do not fit z."""

    def latent_size(self, size: tuple[int | None, int | None, int | None]) -> tuple[int | None, int | None, int | None]:
        """(T, H, W) of pixels -> (t, h, w)."""
        return self.config.latent_size(size)

    def draw_noise(self, streams: Sequence[np.random.Generator], size: tuple[int, int, int]) -> list[np.ndarray]:
        """Noise for :meth:`encode`, every sample's from its own stream, so that it is the same in any batch."""
        shapes = self.config.noise_shapes(size)
        drawn = [[stream.standard_normal(shape, np.float32) for shape in shapes] for stream in streams]
        return [np.stack(arrays) for arrays in zip(*drawn, strict=True)]

    def _checked(self, x: Tensor) -> Tensor:
        """x in the type to compute in. PayloadError for what cannot be encoded."""
        _, rows, columns = self.patch_size
        wrong = ""
        if x.ndim != 5 or x.shape[1] != self._pixel_channels:
            wrong = f"pixels are [samples, {self._pixel_channels}, frames, height, width]"
        elif 0 in x.shape:
            wrong = "there is nothing to encode"
        elif x.shape[3] < rows or x.shape[4] < columns:
            wrong = f"frames have to be {rows} x {columns} pixels at least, one latent"
        if wrong:
            raise PayloadError(
                BAD_DATA, f"clip of shape {list(x.shape)} cannot be encoded", where=f"autoencoder {self.config.type}",
                why=wrong, next_step="leave the clip out, or resize it",
            )  # fmt: skip
        return x.astype(as_dtype(self.dtype))

    @property
    def _pixel_channels(self) -> int:
        return 3 if self.config.type == "identity" else self.config.spatial.in_channels

    def _expect(self, z: Tensor, num_frames: int) -> None:
        """PayloadError where z does not hold the latents of that many frames."""
        wanted = self.config.latent_size((num_frames, None, None))[0] if num_frames > 0 else None
        if z.ndim != 5 or z.shape[1] != self.out_channels or z.shape[2] != wanted or 0 in z.shape:
            raise PayloadError(
                BAD_DATA, f"latents of shape {list(z.shape)} cannot be decoded",
                where=f"autoencoder {self.config.type}",
                why=f"{num_frames} frames have latents [samples, {self.out_channels}, {wanted or 0}, height, width]",
                next_step="give latents and num_frames of the same clip",
            )  # fmt: skip


class Identity(Autoencoder):
    """Latents are the pixels."""

    def encode(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        return self._checked(x)

    def posterior(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        return self._checked(x), P.zeros_like(x)

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        self._expect(z, num_frames)
        return z


class FrameAutoencoder(Autoencoder):
    """Images, frame by frame: ``VideoAutoencoderKL``."""

    def __init__(self, config: AutoencoderConfig, network: VideoAutoencoderKL, group: Group | None = None) -> None:
        super().__init__(config, group)
        self.network = _frozen(network)
        self.cache_scale = config.scale_factor
        self._images = _Images(config, network)

    def encode(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        return draw(self._moments(x), _tensor(noise, 0)) * self.cache_scale

    def posterior(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        return _mean_and_deviation(self._moments(x))

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        self._expect(z, num_frames)
        z = z.astype(as_dtype(self.dtype))
        pixels = microbatch.encode_frames(self.group, self._images.decode, z, self.config.micro_batch_size)
        return pixels.astype(ms.float32)

    def _moments(self, x: Tensor) -> Tensor:
        """float32 [B, 2 C, T, h, w]"""
        x = self._checked(x)
        moments = microbatch.encode_frames(self.group, self._images.moments, x, self.config.micro_batch_size)
        return moments.astype(ms.float32)


class ClipAutoencoder(Autoencoder):
    """Images, then chunks of clips: ``OpenSoraVAE_V1_2``."""

    def __init__(
        self, config: AutoencoderConfig, network: VideoAutoencoderPipeline, group: Group | None = None
    ) -> None:
        super().__init__(config, group)
        self.network = _frozen(network)
        self._images = _Images(config, network.spatial_vae)

    def encode(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        return self.network.normalized(draw(self.moments(x, noise), _tensor(noise, 1)))

    def posterior(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        mean, std = _mean_and_deviation(self.moments(x, noise))
        return self.network.normalized(mean), std / self.network.scale

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        self._expect(z, num_frames)
        z = self.network.denormalized(z.astype(ms.float32)).astype(as_dtype(self.dtype))
        pixels = microbatch.decode(
            self.group, self._frames, self._images.decode, z, num_frames,
            self.config.micro_batch_size, self.config.micro_frame_size, self.config.temporal.factor,
        )  # fmt: skip
        return pixels.astype(ms.float32)

    def moments(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """float32 [B, 2 C, t, h, w] of the temporal autoencoder, not normalised; see :meth:`posterior`."""
        x = self._checked(x)
        config, drawn = self.config, _tensor(noise, 0)
        spans = microbatch.chunk_spans(x.shape[2], config.micro_frame_size)
        micros = microbatch.micro_batches(x.shape[0], spans, config.micro_batch_size)

        def image_latents(rows: Tensor, number: int) -> Tensor:
            own = None if drawn is None else microbatch.rows_of(drawn, micros[number])
            return draw(self._images.moments(rows, number), own) * config.scale_factor

        coded = microbatch.encode(
            self.group, image_latents, self._clip_moments, x, config.micro_batch_size, config.micro_frame_size
        )
        return coded.astype(ms.float32)

    def _clip_moments(self, x_z: Tensor, number: int) -> Tensor:
        return self._tiled(self.network.temporal_vae.encode, x_z)

    def _frames(self, z: Tensor, number: int, frames: int) -> Tensor:
        return self._tiled(lambda part: self.network.temporal_vae.decode(part, frames), z)

    def _tiled(self, code: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        tiles = self._images.tiles
        return code(x) if tiles is None else tiles.code(code, x, 1, 1)


class _Images:
    """The image autoencoder's two halves on a micro batch of frames, in tiles where they are wanted."""

    def __init__(self, config: AutoencoderConfig, network: VideoAutoencoderKL) -> None:
        self._network, self._factor, self._scale = network, config.spatial.factor, config.scale_factor
        self.tiles = None if config.tiling is None else Tiles.of(config.tiling, self._factor)

    def moments(self, rows: Tensor, number: int) -> Tensor:
        code = self._network.module.encode
        return code(rows) if self.tiles is None else self.tiles.code(code, rows, self._factor, 1)

    def decode(self, rows: Tensor, number: int) -> Tensor:
        code = self._network.decode_rows
        return code(rows) if self.tiles is None else self.tiles.code(code, rows, 1, self._factor)


def _frozen(network: nn.Cell) -> nn.Cell:
    network.set_train(False)
    for param in network.get_parameters():
        param.requires_grad = False
    return network


def _mean_and_deviation(moments: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = mean_and_logvar(moments)
    return mean, deviation(logvar)


def _tensor(noise: Noise | None, number: int) -> Tensor | None:
    if noise is None:
        return None
    value = noise[number]
    return value if isinstance(value, Tensor) else Tensor(np.ascontiguousarray(value))
