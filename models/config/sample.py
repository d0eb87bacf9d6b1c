"""What ``python -m models.sample`` is told: which weights, what to show, how large and long, how, and where to."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from models.config.autoencoder import AutoencoderConfig
from models.config.base import Dtype, Positive, Probability, Section
from models.config.diffusion import DiffusionConfig
from models.config.model import ModelConfig
from models.config.running import Jit, TaskConfig
from models.config.text import TextConfig
from models.data import aspect

# Evaluations of a network that take less time than compiling it.
FEW_EVALUATIONS = 20
# What the original versions do differently around the network; the network's type says which of them is meant.
VERSIONS = {"STDiT": "v1.0", "STDiT2": "v1.1", "STDiT3": "v1.2"}


class OutputConfig(Section):
    """Where results go and what they are called: ``<dir>/<name>_0000.mp4``, or ``<dir>/<name><prompt>.mp4``.

    format: mp4 (h264), gif, or png: a folder of numbered frames. A single frame is always one PNG file.
    existing: what happens to results that are there already: ``refuse`` ends before anything is computed, ``skip``
        leaves them, ``overwrite`` replaces them. What the same run finished before it was interrupted is never redone.
    """

    dir: str = "samples"
    format: Literal["mp4", "gif", "png"] = "mp4"
    name: str | None = None
    prompt_as_path: bool = False
    save_fps: Annotated[float, Field(gt=0)] | None = None
    existing: Literal["refuse", "skip", "overwrite"] = "refuse"


class SampleConfig(TaskConfig):
    """Everything the payload needs to sample. Relative paths start at ``root``, which starts at the run directory.

    weights: a file of weights, a folder with one, a checkpoint ``step-N``, or a run directory, whose newest checkpoint
        is taken (its moving averages where ``use_ema``). What is not said of model, autoencoder, text and diffusion is
        then as that run has it; so is the size, where the run has only one.
    prompts, or prompt_path: a text file with one a line, or a CSV with a column ``prompt`` or ``caption`` and, as far
        as wanted, ``negative_prompt``, ``reference_path``, ``mask_strategy``, ``seed``, ``name``. start_index and
        end_index choose a part. text_embeddings: a folder of npz files instead of a text encoder, one a prompt by name.
    negative_prompt: takes the place of the learned null caption in guidance.
    reference_path: images or clips, ``;`` between several, and mask_strategy: one of each for all prompts, or a list.
    num_frames: a number, or 2s, 4s, 8s, 16s. fps: what the network is told; results play at fps / frame_interval.
    loop: clips that follow one another, each starting with the last condition_frame_length latent frames of the one
        before, kept with condition_frame_edit. align: starts of conditioning frames snap to multiples of it; None: the
        autoencoder's chunk, 0: not.
    aes, flow, camera_motion: appended to prompts.
    num_samples: of every prompt. seed: a prompt gives the same result with it, whatever else is sampled.
    sampling: None is what ``diffusion`` says, DDPM for IDDPM. guidance_channels: how many channels guidance moves.
    jit: compile the network, once for each shape of a batch; auto: where a rank evaluates it 20 times or more and ranks
        do not talk inside it.
    stage: ``text``, ``latents`` and ``decode`` do a third each and leave files in ``output.dir`` for the next one.
    """

    model: ModelConfig | None = None
    weights: str = ""
    use_ema: bool = True
    autoencoder: AutoencoderConfig | None = None
    text: TextConfig | None = None
    diffusion: DiffusionConfig | None = None
    prompts: tuple[str, ...] = ()
    prompt_path: str = ""
    start_index: Annotated[int, Field(ge=0)] = 0
    end_index: Annotated[int, Field(ge=0)] | None = None
    text_embeddings: str = ""
    negative_prompt: str | None = None
    reference_path: str | tuple[str | None, ...] = ""
    mask_strategy: str | tuple[str | None, ...] = ""
    image_size: tuple[Positive, Positive] | None = None
    resolution: str | None = None
    aspect_ratio: str | None = None
    num_frames: Positive | str | None = None
    fps: Annotated[float, Field(gt=0)] = 24.0
    frame_interval: Positive = 1
    loop: Positive = 1
    condition_frame_length: Positive = 5
    condition_frame_edit: Probability = 0.0
    align: Annotated[int, Field(ge=0)] | None = None
    aes: float | None = None
    flow: float | None = None
    camera_motion: str | None = None
    num_samples: Positive = 1
    batch_size: Positive = 1
    sampling: Literal["rflow", "ddpm", "ddim"] | None = None
    num_sampling_steps: Positive = 30
    guidance_scale: Annotated[float, Field(ge=0)] = 7.0
    guidance_channels: Positive | None = None
    eta: Probability = 0.0
    use_timestep_transform: bool | None = None
    stage: Literal["text", "latents", "decode", "all"] = "all"
    dtype: Dtype = "bf16"
    jit: Jit = "auto"
    output: OutputConfig = OutputConfig()
    root: str = ""

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @property
    def version(self) -> str:
        """``v1.0``, ``v1.1`` or ``v1.2``; without a model the last one."""
        return VERSIONS[self.model.type] if self.model is not None else "v1.2"

    @property
    def sampler(self) -> str:
        """``rflow``, ``ddpm`` or ``ddim``."""
        if self.sampling is not None:
            return self.sampling
        if self.diffusion is not None:
            return "rflow" if self.diffusion.type == "rflow" else "ddpm"
        return "rflow" if self.version == "v1.2" else "ddpm"

    @property
    def frames(self) -> int | None:
        """Frames of a clip. ValueError for a length that does not exist."""
        return None if self.num_frames is None else aspect.num_frames(self.num_frames)

    def compiles(self, evaluations: int) -> bool:
        """Whether the network is compiled for so many evaluations."""
        wanted = self.jit == "on" or (self.jit == "auto" and evaluations >= FEW_EVALUATIONS)
        return wanted and self.layout.sp == 1

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels. KeyError for names that do not exist."""
        if self.image_size is not None:
            return self.image_size
        if self.resolution is not None and self.aspect_ratio is not None:
            return aspect.image_size(self.resolution, self.aspect_ratio)
        return None

    @property
    def save_fps(self) -> float:
        return self.output.save_fps or max(1.0, self.fps // self.frame_interval)

    @property
    def latent_chunk(self) -> tuple[int, int] | None:
        """(latent frames, frames) that the autoencoder codes by themselves; None where a frame is a latent frame."""
        coder = self.autoencoder
        if coder is None or coder.patch_size[0] == 1 or coder.chunk is None:
            return None
        return math.ceil(coder.chunk / coder.patch_size[0]), coder.chunk


def sample_problems(config: SampleConfig) -> list[tuple[tuple[str, ...], str]]:
    """What cannot be sampled, as far as the configuration alone tells: (path below ``sample``, why)."""
    return [*_sources(config), *_sizes(config), *_process(config), *_conditions(config), *_layout(config)]


def _layout(config: SampleConfig) -> list[tuple[tuple[str, ...], str]]:
    found: list[tuple[tuple[str, ...], str]] = []
    layout, model = config.layout, config.model
    if config.jit == "on" and layout.sp > 1:
        found.append(
            (("jit",), f"ranks talk inside the model under sp {layout.sp}, which runs eagerly; set jit to auto")
        )
    if layout.zero:
        found.append((("layout", "zero"), "every rank holds all weights when it samples; leave zero out"))
    if model is not None and layout.sp_kind == "ulysses" and model.num_heads % layout.sp:
        fitting = ", ".join(str(size) for size in range(1, model.num_heads + 1) if model.num_heads % size == 0)
        found.append(
            (
                ("layout", "sp"),
                f"{layout.sp} ranks cannot share {model.num_heads} heads; {fitting} can, or sp_kind: dsp",
            )
        )
    return found


def _sources(config: SampleConfig) -> list[tuple[tuple[str, ...], str]]:
    found: list[tuple[tuple[str, ...], str]] = []
    if config.prompts and config.prompt_path:
        found.append((("prompt_path",), "prompts and prompt_path both say what to show; keep one"))
    if config.stage == "decode":
        return found
    if not (config.prompts or config.prompt_path or config.text_embeddings):
        found.append((("prompts",), "nothing says what to show: give prompts, prompt_path or text_embeddings"))
    if not config.weights and config.stage != "text":
        found.append((("weights",), "the weights to sample with are missing: a file, a checkpoint or a run directory"))
    if config.text_embeddings and config.stage == "text":
        found.append((("stage",), "the text stage encodes prompts; text_embeddings has them encoded already"))
    return found


def _sizes(config: SampleConfig) -> list[tuple[tuple[str, ...], str]]:
    found: list[tuple[tuple[str, ...], str]] = []
    if config.image_size is not None and (config.resolution or config.aspect_ratio):
        found.append((("image_size",), "image_size and resolution both say the size; keep one"))
    elif (config.resolution is None) != (config.aspect_ratio is None):
        there, missing = ("resolution", "aspect_ratio") if config.resolution else ("aspect_ratio", "resolution")
        found.append(((there,), f"{there} needs {missing} beside it"))
    else:
        try:
            _ = config.size
        except KeyError as error:
            known = config.resolution in aspect.TABLES
            found.append((("aspect_ratio",) if known else ("resolution",), str(error.args[0])))
    try:
        _ = config.frames
    except ValueError as error:
        found.append((("num_frames",), str(error)))
    return found


def _process(config: SampleConfig) -> list[tuple[tuple[str, ...], str]]:
    found: list[tuple[tuple[str, ...], str]] = []
    learned = config.diffusion.type if config.diffusion is not None else None
    if config.diffusion is None and config.model is not None:
        learned = "rflow" if config.version == "v1.2" else "iddpm"
    if learned is not None and (learned == "rflow") != (config.sampler == "rflow"):
        found.append((("sampling",), f"a network trained with {learned} cannot be sampled with {config.sampler}"))
    if config.guidance_channels is not None:
        if config.sampler == "rflow":
            found.append((("guidance_channels",), "rectified flow guides all channels; leave it out"))
        elif config.model is not None and config.guidance_channels > config.model.in_channels:
            found.append(
                (("guidance_channels",), f"is {config.guidance_channels}, latents have {config.model.in_channels}")
            )
    if config.eta and config.sampler != "ddim":
        found.append((("eta",), f"only ddim knows eta, {config.sampler} does not"))
    return found


def _conditions(config: SampleConfig) -> list[tuple[tuple[str, ...], str]]:
    found: list[tuple[tuple[str, ...], str]] = []
    version = config.version
    conditioned = [name for name in ("reference_path", "mask_strategy") if getattr(config, name)]
    if version == "v1.0":
        if config.loop > 1:
            found.append((("loop",), "Open-Sora 1.0 cannot go on from frames that are there: loop is 1"))
        found += [((name,), "Open-Sora 1.0 takes no conditioning frames") for name in conditioned]
    scored = [name for name in ("aes", "flow") if getattr(config, name) is not None]
    if version != "v1.2":
        found += [((name,), f"Open-Sora {version[1:]} was trained without scores in captions") for name in scored]
    if version == "v1.0" and config.camera_motion is not None:
        found.append((("camera_motion",), "Open-Sora 1.0 was trained without camera motion in captions"))
    if config.sampler == "ddim" and (conditioned or config.loop > 1):
        found.append((("sampling",), "ddim knows no conditioning frames; sample with ddpm"))
    if config.model is not None and config.model.patch_size[0] != 1 and (conditioned or config.loop > 1):
        found.append((("model", "patch_size"), "conditioning frames need patches of one frame"))
    chunk = config.latent_chunk
    if config.loop > 1 and chunk is not None and config.condition_frame_length % chunk[0]:
        found.append(
            (
                ("condition_frame_length",),
                f"is {config.condition_frame_length}; the autoencoder codes chunks of {chunk[0]} latent frames, "
                "so it has to be a multiple of that",
            )
        )
    return found
