"""How training runs, whatever it trains: optimizer, checkpoints, logs, layout."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BeforeValidator, Field

from models.config.base import Positive, Probability, Section
from models.units import Size


def _jit_word(value: Any) -> Any:
    """YAML reads ``on`` and ``off`` without quotes as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


# Whether steps are compiled; auto: where samples have few shapes.
Jit = Annotated[Literal["auto", "on", "off"], BeforeValidator(_jit_word)]


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

    every_epochs: after every so many passes over the data instead.
    The ``keep_last`` newest stay, and every one whose step is a multiple of ``keep_every``. copies: how many nodes hold
    each shard where nodes have disks of their own. background: training goes on while files are written.
    """

    every: Positive = 500
    every_epochs: Positive | None = None
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


class TaskConfig(Section):
    """What every task is told. ``recipe`` names the bundled defaults it was built from."""

    recipe: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    max_device_memory: Size | None = None
    layout: LayoutConfig = LayoutConfig()

    @property
    def total_steps(self) -> int:
        """Steps until the task is done, for progress; 0 where nobody knows before."""
        return 0


class _Long(Protocol):
    @property
    def steps(self) -> int | None: ...
    @property
    def epochs(self) -> int | None: ...


LongT = TypeVar("LongT", bound=_Long)


def one_length(config: LongT) -> LongT:
    """For validators: a training lasts some steps or some epochs. ValueError."""
    if config.steps is None and config.epochs is None:
        raise ValueError("neither steps nor epochs says how long to train")
    if config.steps is not None and config.epochs is not None:
        raise ValueError(f"steps {config.steps} and epochs {config.epochs} both say how long to train; set one to null")
    return config
