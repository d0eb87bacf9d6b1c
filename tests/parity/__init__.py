"""Golden vectors of the original PyTorch code against ours: ``python -m tests.parity CASE_DIR…``."""

import os

# Read by MindSpore's libraries when they load. Tiny kernels: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
