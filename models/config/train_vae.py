"""What ``python -m models.train_vae`` is told. Names follow upstream's configs/vae/train and the reference's flags."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.config.autoencoder import AutoencoderConfig
from models.config.base import Dtype, Positive, Probability, Section
from models.config.data import DataConfig
from models.config.running import (
    CheckpointConfig,
    Jit,
    LogConfig,
    LossScaleConfig,
    OptimizerConfig,
    TaskConfig,
    one_length,
)

Weight = Annotated[float, Field(ge=0)]


class ClipsConfig(DataConfig):
    """Clips without captions: of the keys of ``data`` those of text have no meaning here.

    random_crop: a window anywhere in the scaled clip instead of its middle. flip: half of the samples are mirrored.
    """

    random_crop: bool = False
    flip: bool = False


class PerceptualConfig(Section):
    """The network of the perceptual loss.

    lpips: VGG16 with LPIPS's weights. vgg: a file with torchvision's VGG16 (``features.0.weight`` …), or one that has
    everything under upstream's names (``net.slice1.0.weight`` …); lin: one with the ``lin`` weights (upstream:
    vgg.pth); both .pth or safetensors. random: a fixed network of random features with ``channels``; needs no files
    and is only a stand-in for small trials.
    """

    type: Literal["lpips", "random"] = "lpips"
    vgg: str | None = None
    lin: str | None = None
    channels: tuple[Positive, Positive, Positive, Positive, Positive] = (8, 16, 32, 32, 32)


class AdversarialConfig(Section):
    """The adversarial loss. Upstream: opensora/models/vae/{discriminator,losses}.py.

    start: the step (from 0) at which it sets in. discriminator_factor: of both losses; generator_factor: of the
    generator's, beside the adaptive weight, which is worked out at ``last_layer``: the last convolution of the temporal
    decoder (1.2) or of the image decoder (2.0). lr: of the discriminator's AdamW; None: that of ``optimizer``.
    """

    discriminator: Literal["NLayerDiscriminator3D", "NLayerDiscriminator"] = "NLayerDiscriminator3D"
    ndf: Positive = 64
    n_layers: Annotated[int, Field(ge=1, le=8)] = 3
    loss: Literal["hinge", "vanilla", "non-saturating", "wgan-gp"] = "hinge"
    start: Annotated[int, Field(ge=0)] = 0
    discriminator_factor: Weight = 1.0
    generator_factor: Weight = 0.5
    last_layer: Literal["spatial", "temporal"] = "spatial"
    lr: Annotated[float, Field(gt=0)] | None = None


class TrainVaeConfig(TaskConfig):
    """Everything the payload needs to train an autoencoder.

    init_from: weights of the whole autoencoder to start with (a file, or a checkpoint of the stage before), over those
        that ``autoencoder.pretrained`` and ``pretrained_2d`` name; without any, training starts from random ones.
    freeze_vae_2d: only the temporal part learns.
    use_real_rec_loss: pixels (with perceptual loss and divergence); use_z_rec_loss: image latents;
        use_image_identity_loss: where a sample is one frame, latents of clips should be those of images.
    mixed_strategy: mixed_video_image: a step in ``mixed_image_ratio`` sees single frames; mixed_video_random: every
        step draws how many frames it sees, from 1 to ``data.num_frames``; image_only: single frames.
    recompute: activations of the autoencoder's parts are computed again in the backward pass, those of images in micro
        batches of ``autoencoder.micro_batch_size`` frames.
    steps, epochs: how long; one of them. jit: compile forward and backward pass; auto: on Ascend, unless parts are
        recomputed or every step has another number of frames.
    """

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    init_from: str | None = None
    freeze_vae_2d: bool = False
    data: ClipsConfig = ClipsConfig()
    use_real_rec_loss: bool = True
    use_z_rec_loss: bool = False
    use_image_identity_loss: bool = False
    perceptual_loss_weight: Weight = 0.1
    perceptual: PerceptualConfig = PerceptualConfig()
    kl_loss_weight: Weight = 1e-6
    logvar_init: float = 0.0
    mixed_strategy: Literal["mixed_video_image", "mixed_video_random", "image_only"] | None = None
    mixed_image_ratio: Probability = 0.0
    adversarial: AdversarialConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5)
    loss_scale: LossScaleConfig = LossScaleConfig(initial=1.0)
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    steps: Positive | None = 1000
    epochs: Positive | None = None
    batch_size: Positive = 1
    gradient_accumulation_steps: Positive = 1
    dtype: Dtype = "bf16"
    recompute: bool = False
    jit: Jit = "auto"
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def total_steps(self) -> int:
        return self.steps or 0

    def compiled(self, device: str) -> bool:
        """Whether forward and backward pass are compiled, for every number of frames anew."""
        few = self.mixed_strategy != "mixed_video_random"
        return self.jit == "on" or (self.jit == "auto" and few and not self.recompute and device == "Ascend")

    @property
    def needs_lpips(self) -> bool:
        """Whether the perceptual loss needs weights from files."""
        return self.use_real_rec_loss and self.perceptual_loss_weight > 0 and self.perceptual.type == "lpips"

    @model_validator(mode="after")
    def _one_length(self) -> TrainVaeConfig:
        return one_length(self)

    @model_validator(mode="after")
    def _losses(self) -> TrainVaeConfig:
        frames_only = self.autoencoder.type == "VideoAutoencoderKL"
        if self.autoencoder.type == "identity":
            raise ValueError("autoencoder.type identity has nothing to train")
        if not (self.use_real_rec_loss or self.use_z_rec_loss):
            raise ValueError("no loss is chosen: set use_real_rec_loss (pixels) or use_z_rec_loss (image latents)")
        if frames_only and (self.use_z_rec_loss or self.use_image_identity_loss or self.freeze_vae_2d):
            raise ValueError(
                "VideoAutoencoderKL has no temporal part: use_z_rec_loss, use_image_identity_loss and freeze_vae_2d "
                "are for OpenSoraVAE_V1_2"
            )
        if self.adversarial is not None and not self.use_real_rec_loss:
            raise ValueError("adversarial: the discriminator looks at pixels; set use_real_rec_loss")
        if self.adversarial is not None and self.adversarial.last_layer == "temporal" and frames_only:
            raise ValueError("adversarial.last_layer: VideoAutoencoderKL has no temporal part; set spatial")
        return self

    @model_validator(mode="after")
    def _sizes(self) -> TrainVaeConfig:
        if self.data.bucket_config is not None:
            raise ValueError("data.bucket_config: autoencoders train on one size; set data.image_size")
        if self.data.latents or self.data.max_image_size is not None:
            key = "latents" if self.data.latents else "max_image_size"
            raise ValueError(f"data.{key}: autoencoders train on pixels of one size; set data.image_size")
        if self.layout.sp > 1:
            raise ValueError("layout.sp: autoencoders train data-parallel only; set sp to 1")
        if self.jit == "on" and self.recompute:
            raise ValueError("jit: recomputed parts run eagerly; set jit to auto, or recompute to false")
        if self.layout.zero == 3:
            raise ValueError("layout.zero: autoencoders train with zero 0, 1 or 2")
        size = self.data.image_size
        factor = self.autoencoder.spatial.factor
        if size is not None and (size[0] % factor or size[1] % factor):
            raise ValueError(
                f"data.image_size {size[0]}x{size[1]}: sides are multiples of {factor}, the pixels of a latent"
            )
        return self


def unrunnable_vae(config: TrainVaeConfig) -> list[tuple[tuple[str, ...], str]]:
    """What renders but cannot run: (path below ``train_vae``, why)."""
    found: list[tuple[tuple[str, ...], str]] = []
    if config.needs_lpips and config.perceptual.vgg is None:
        why = (
            "the perceptual loss needs weights: name files of VGG16 and LPIPS in perceptual.vgg and perceptual.lin, "
            "set perceptual.type to random for a stand-in, or perceptual_loss_weight to 0"
        )
        found.append((("perceptual", "vgg"), why))
    return found
