"""STDiT3: as :mod:`tests.parity.stdit`, with tolerances of its own."""

from tests.parity.stdit import model_of, run

__all__ = ["model_of", "run"]
