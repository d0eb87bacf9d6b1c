"""The payload's configuration: what ``train:`` of a job and ``train.yaml`` of a run directory may say.

Imports no MindSpore: the control plane checks jobs against the same classes. Field names follow Open-Sora's
configuration files where they have one.
"""

from models.config.autoencoder import AutoencoderConfig, SpatialConfig, TemporalConfig, TilingConfig
from models.config.base import Positive, Probability, Section
from models.config.data import Bucket, BucketConfig, DataConfig
from models.config.diffusion import DiffusionConfig
from models.config.model import ModelConfig
from models.config.running import (
    CheckpointConfig,
    LayoutConfig,
    LogConfig,
    LossScaleConfig,
    OptimizerConfig,
    TaskConfig,
)
from models.config.text import TextConfig
from models.config.train import MASK_NAMES, TrainConfig, unrunnable
from models.config.validation import ValidationConfig

__all__ = [
    "MASK_NAMES",
    "AutoencoderConfig",
    "Bucket",
    "BucketConfig",
    "CheckpointConfig",
    "DataConfig",
    "DiffusionConfig",
    "LayoutConfig",
    "LogConfig",
    "LossScaleConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Positive",
    "Probability",
    "Section",
    "SpatialConfig",
    "TaskConfig",
    "TemporalConfig",
    "TextConfig",
    "TilingConfig",
    "TrainConfig",
    "ValidationConfig",
    "unrunnable",
]
