"""ostrain: the control plane. From a job file to a running, watched, restartable training run."""

__version__ = "0.1.0"
