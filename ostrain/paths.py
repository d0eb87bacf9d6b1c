"""Where ostrain keeps things on the submitting machine (XDG base directories)."""

from __future__ import annotations

import os
from pathlib import Path


def _base(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    # The XDG specification: a relative path in these variables is invalid and to be ignored.
    return Path(value) if value.startswith("/") else Path.home() / fallback


def state_dir() -> Path:
    """Run store, log cursors, reports; also the root of ``local`` runs."""
    return _base("XDG_STATE_HOME", ".local/state") / "ostrain"


def config_dir() -> Path:
    """Inventories (``clusters/``) and secrets (``secrets/``)."""
    return _base("XDG_CONFIG_HOME", ".config") / "ostrain"


def cache_dir() -> Path:
    """Archives of code and files, made again whenever they are missing."""
    return _base("XDG_CACHE_HOME", ".cache") / "ostrain"
