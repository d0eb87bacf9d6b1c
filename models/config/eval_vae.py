"""What ``python -m models.eval_vae`` is told."""

from __future__ import annotations

from typing import Literal

from models.config.autoencoder import AutoencoderConfig
from models.config.base import Positive
from models.config.running import TaskConfig
from models.config.train_vae import ClipsConfig, PerceptualConfig


class EvalVaeConfig(TaskConfig):
    """Everything the payload needs to measure an autoencoder: clips are coded, decoded and compared with themselves.

    data.annotations: a CSV, or empty: all clips and pictures in the folder ``data.videos``. data.num_frames: frames of
        a clip from its start, every ``frame_interval``-th; shorter clips are taken as they are. data.image_size: None
        keeps a clip's own size, cut to whole latents.
    weights: a file, a checkpoint ``step-N`` or a run directory, in the place of ``autoencoder.pretrained``; ema: the
        averages of a checkpoint that has any.
    sample: latents are drawn from the posterior (with ``seed``), not its means.
    perceptual: None measures no LPIPS. ssim: gaussian (Open-Sora's) or uniform (scikit-image's).
    save: reconstructions beside their clips as files. limit: clips at most.
    """

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    weights: str | None = None
    ema: bool = True
    data: ClipsConfig = ClipsConfig(num_frames=17)
    sample: bool = False
    perceptual: PerceptualConfig | None = None
    ssim: Literal["gaussian", "uniform"] = "gaussian"
    save: bool = False
    limit: Positive | None = None
    output: str = "eval"
