"""Diffusion formulations: how a clean latent becomes noise, what the network learns, and the way back."""

from models.diffusion.process import Process, build, iddpm_options

__all__ = ["Process", "build", "iddpm_options"]
