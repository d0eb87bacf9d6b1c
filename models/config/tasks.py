"""The payload's tasks: what a job may ask for, the configuration of each, and the module that does it."""

from __future__ import annotations

from dataclasses import dataclass

from models.config.cache_latents import CacheLatentsConfig
from models.config.embed_text import EmbedTextConfig
from models.config.eval_vae import EvalVaeConfig
from models.config.running import TaskConfig
from models.config.sample import SampleConfig
from models.config.train import TrainConfig
from models.config.train_vae import TrainVaeConfig


@dataclass(frozen=True)
class TaskKind:
    """``python -m models.<name> --config <name>.yaml`` runs it; a job's key ``<name>`` is its configuration."""

    name: str
    config: type[TaskConfig]
    what: str


TASKS = {
    kind.name: kind
    for kind in (
        TaskKind("train", TrainConfig, "trains a diffusion transformer"),
        TaskKind("train_vae", TrainVaeConfig, "trains an autoencoder"),
        TaskKind("sample", SampleConfig, "makes videos and images from prompts"),
        TaskKind("embed_text", EmbedTextConfig, "embeds captions"),
        TaskKind("cache_latents", CacheLatentsConfig, "encodes clips"),
        TaskKind("eval_vae", EvalVaeConfig, "measures an autoencoder"),
    )
}


def task_of(config: type) -> str:
    """Name of the task that a configuration is for."""
    return next(kind.name for kind in TASKS.values() if issubclass(config, kind.config))
