"""Job files, recipes and inventories: reading, merging and checking them, with the place of every value."""

from __future__ import annotations

from ostrain.spec.checks import check_runnable
from ostrain.spec.load import LoadedJob, load_job

__all__ = ["LoadedJob", "check_runnable", "load_job"]
