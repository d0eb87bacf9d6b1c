"""Golden vectors of the original PyTorch code against ours: ``python -m tests.parity CASE_DIR…``."""
