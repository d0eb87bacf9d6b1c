"""Diffusion formulations: how a clean latent becomes noise, what the network learns, and the way back."""
