"""STDiT3, the spatial-temporal diffusion transformer of Open-Sora 1.2."""

from models.stdit.stdit3 import STDiT3, build_model, config_from_init

__all__ = ["STDiT3", "build_model", "config_from_init"]
