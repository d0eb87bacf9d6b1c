"""The payload's configuration: what ``train:`` of a job and ``train.yaml`` of a run directory may say.

Imports no MindSpore: the control plane checks jobs against the same classes. Field names follow Open-Sora's
configuration files where they have one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.units import Size

Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
# frames -> [keep probability, batch size] or [[keep probability, probability of this length], batch size]
Bucket = tuple[Probability | tuple[Probability, Probability], Annotated[int, Field(ge=0)] | None]
BucketConfig = dict[str, dict[Positive, Bucket]]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The diffusion transformer (STDiT3). Upstream: opensora/models/stdit/stdit3.py, ``STDiT3Config``."""

    type: Literal["STDiT3"] = "STDiT3"
    in_channels: Positive = 4
    patch_size: tuple[Positive, Positive, Positive] = (1, 2, 2)
    input_sq_size: Positive = 512
    hidden_size: Positive = 1152
    depth: Positive = 28
    num_heads: Positive = 16
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    class_dropout_prob: Probability = 0.1
    pred_sigma: bool = True
    drop_path: Literal[0.0] = 0.0
    caption_channels: Positive = 4096
    model_max_length: Positive = 300
    qk_norm: bool = True
    only_train_temporal: bool = False
    freeze_y_embedder: bool = False
    skip_y_embedder: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        head_dim = self.hidden_size // self.num_heads
        if head_dim % 2:
            raise ValueError(f"hidden_size / num_heads is {head_dim}; rotary embeddings need an even number")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4 (2-D position table)")
        return self


class AutoencoderConfig(Section):
    """How pixels become latents. ``identity``: latents are the pixels in [-1, 1] (in_channels 3)."""

    type: Literal["identity", "OpenSoraVAE_V1_2"] = "OpenSoraVAE_V1_2"
    pretrained: str | None = None
    micro_batch_size: Positive | None = 4
    micro_frame_size: Positive | None = 17
    dtype: Literal["fp32", "fp16", "bf16"] = "bf16"

    @property
    def latent_channels(self) -> int:
        return 3 if self.type == "identity" else 4


class DataConfig(Section):
    """Clips and captions. Paths are the nodes'; relative ones start at the run directory.

    annotations: CSV with a header holding ``video_column`` and ``caption_column``.
    text_embeddings: folder of ``<video path without suffix>.npz`` (or ``<video path>.npz``) with ``text_emb``
        float32 [L, caption_channels] and ``mask`` uint8 [L].
    image_size: fixed (height, width) in pixels; or ``resolution`` with ``aspect_ratio``; or ``bucket_config``.
    num_frames, frame_interval: with a fixed size; frames drawn every ``frame_interval`` frames from a random start.
    workers, prefetch: threads that decode, steps they run ahead. cache: bytes of resized frames a worker keeps.
    """

    annotations: str = ""
    videos: str = ""
    text_embeddings: str = ""
    video_column: str = "video"
    caption_column: str = "caption"
    image_size: tuple[Positive, Positive] | None = None
    resolution: str | None = None
    aspect_ratio: str | None = None
    num_frames: Positive = 16
    frame_interval: Positive = 1
    bucket_config: BucketConfig | None = None
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    prefetch: Positive = 2
    cache: Size = 256 << 20


class DiffusionConfig(Section):
    """Rectified flow. Upstream: opensora/schedulers/rf/rectified_flow.py."""

    type: Literal["rflow"] = "rflow"
    num_timesteps: Positive = 1000
    sample_method: Literal["uniform", "discrete-uniform", "logit-normal"] = "logit-normal"
    use_timestep_transform: bool = True
    transform_scale: Annotated[float, Field(gt=0)] = 1.0
    loc: float = 0.0
    scale: Annotated[float, Field(gt=0)] = 1.0


class OptimizerConfig(Section):
    """AdamW (decoupled weight decay) with warm-up and a constant or cosine schedule.

    offload: moments, averages and master weights live in host memory, and the update runs there.
    """

    type: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    end_lr: Annotated[float, Field(ge=0)] = 0.0
    decay_steps: Positive | None = None
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    offload: bool = False


class LossScaleConfig(Section):
    """Loss scaling, for fp16 only. dynamic: halved on an overflow, times ``factor`` after ``window`` good steps."""

    type: Literal["dynamic", "static"] = "dynamic"
    initial: Annotated[float, Field(gt=0)] = 65536.0
    factor: Annotated[float, Field(gt=1)] = 2.0
    window: Positive = 2000


class CheckpointConfig(Section):
    """When checkpoints are written (every ``every`` steps and at the end) and which are kept.

    The ``keep_last`` newest stay, and every one whose step is a multiple of ``keep_every``. copies: how many nodes hold
    each shard where nodes have disks of their own. background: training goes on while files are written.
    """

    every: Positive = 500
    keep_last: Positive = 10
    keep_every: Positive | None = None
    copies: Annotated[int, Field(ge=1, le=4)] = 1
    background: bool = True
    dir: str = "checkpoints"


class LogConfig(Section):
    """Metrics every ``every`` steps as JSON lines; TensorBoard event files from rank 0."""

    every: Positive = 1
    tensorboard: bool = True


class LayoutConfig(Section):
    """Degrees of parallelism; dp follows as world / sp.

    unit_size: parameters whose gradients, and shards, travel together, at least; blocks are not divided.
    """

    sp: Positive = 1
    sp_kind: Literal["ulysses", "dsp"] = "ulysses"
    zero: Annotated[int, Field(ge=0, le=3)] = 0
    unit_size: Positive = 4 << 20


MASK_NAMES = (
    "identity", "random", "interpolate", "quarter_random", "quarter_head", "quarter_tail", "quarter_head_tail",
    "image_random", "image_head", "image_tail", "image_head_tail",
)  # fmt: skip


class TrainConfig(Section):
    """Everything the payload needs to train. ``recipe`` names the bundled defaults it was built from.

    recompute: activations of blocks are computed again in the backward pass: true of all, false of none, n of every
    n-th one.
    """

    recipe: str = ""
    model: ModelConfig = ModelConfig()
    init_from: str | None = None
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    data: DataConfig = DataConfig()
    mask_ratios: dict[str, Probability] | None = None
    diffusion: DiffusionConfig = DiffusionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.9999
    steps: Positive = 1000
    batch_size: Positive = 1
    gradient_accumulation_steps: Positive = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    dtype: Literal["fp32", "fp16", "bf16"] = "bf16"
    recompute: bool | Positive = True
    jit: Literal["auto", "on", "off"] = "auto"
    max_device_memory: Size | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    layout: LayoutConfig = LayoutConfig()

    @field_validator("jit", mode="before")
    @classmethod
    def _jit_word(cls, value: Any) -> Any:
        """YAML reads ``on`` and ``off`` without quotes as booleans."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("mask_ratios")
    @classmethod
    def _mask_names(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is None:
            return None
        unknown = [name for name in value if name not in MASK_NAMES]
        if unknown:
            raise ValueError(f"unknown mask {unknown[0]!r}; known: {', '.join(MASK_NAMES)}")
        if sum(v for k, v in value.items() if k != "identity") > 1 + 1e-9:
            raise ValueError("probabilities of masks add up to more than 1")
        return value


def unrunnable(config: TrainConfig) -> list[tuple[tuple[str, ...], str]]:
    """What renders but cannot run: (path below ``train``, why)."""
    found = []
    if config.autoencoder.type != "identity":
        found.append((("autoencoder", "type"), "this version of the payload trains on pixels; set type to identity"))
    layout = config.layout
    if config.jit == "on" and (layout.sp > 1 or layout.zero == 3):
        what = f"sp {layout.sp}" if layout.sp > 1 else "zero 3"
        found.append((("jit",), f"ranks talk inside the model under {what}, which runs eagerly; set jit to auto"))
    return found
