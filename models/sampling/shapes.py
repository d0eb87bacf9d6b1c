"""Sizes of what is sampled, in pixels and in latents."""

from __future__ import annotations

from dataclasses import dataclass

from models.config.sample import SampleConfig
from models.exits import BAD_CONFIG, PayloadError
from models.sampling.metadata import pixel_frames


@dataclass(frozen=True)
class Shape:
    """frames, height, width: of a clip in pixels; latent (T, H, W): of its latents."""

    frames: int
    height: int
    width: int
    latent: tuple[int, int, int]


def shape_of(config: SampleConfig) -> Shape:
    """What a complete configuration samples. PayloadError for sizes of which nothing is left as latents."""
    assert config.autoencoder is not None and config.size is not None and config.frames is not None
    latent = config.autoencoder.latent_size((config.frames, *config.size))
    frames, height, width = (int(side or 0) for side in latent)
    if min(frames, height, width) < 1:
        step = config.autoencoder.patch_size[1:]
        raise PayloadError(
            BAD_CONFIG, f"samples of {config.size[0]}x{config.size[1]} are too small", where="sample.image_size",
            why=f"the autoencoder makes one latent of {step[0]}x{step[1]} pixels", next_step="choose a larger size",
        )  # fmt: skip
    if config.loop > 1 and config.condition_frame_length >= frames:
        raise PayloadError(
            BAD_CONFIG, "every loop would only repeat the one before", where="sample.condition_frame_length",
            why=f"{config.condition_frame_length} frames of {frames} latent ones are kept from it",
            next_step="keep fewer, or make longer clips (num_frames)",
        )  # fmt: skip
    return Shape(config.frames, *config.size, (frames, height, width))


def repeated_frames(config: SampleConfig) -> int:
    """Frames that the conditioning latent frames of a loop stand for."""
    if config.loop == 1:
        return 0
    chunk, length = config.latent_chunk, config.condition_frame_length
    return length if chunk is None else pixel_frames(length, *chunk)


def alignment(config: SampleConfig) -> int | None:
    """What starts of conditioning frames snap to multiples of: as told, else the autoencoder's chunk, else nothing."""
    if config.align is not None:
        return config.align or None
    return config.latent_chunk[0] if config.latent_chunk is not None else None


def result_frames(config: SampleConfig) -> int:
    """Frames of a finished result."""
    assert config.frames is not None
    return config.frames + (config.loop - 1) * (config.frames - repeated_frames(config))
