"""Checkpoints: safetensors with the original PyTorch names, written so that a crash at any byte loses nothing."""

from models.checkpoint.store import Found, newest_complete, prune, recover, verify, write

__all__ = ["Found", "newest_complete", "prune", "recover", "verify", "write"]
