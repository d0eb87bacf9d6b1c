"""The spatial-temporal diffusion transformers of Open-Sora: STDiT (1.0), STDiT2 (1.1) and STDiT3 (1.2)."""

from models.stdit.base import Transformer
from models.stdit.build import build, build_model, config_from_init, create
from models.stdit.stdit import STDiT
from models.stdit.stdit2 import STDiT2
from models.stdit.stdit3 import STDiT3

__all__ = ["STDiT", "STDiT2", "STDiT3", "Transformer", "build", "build_model", "config_from_init", "create"]
