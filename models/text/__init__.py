"""Captions as embeddings: text encoders, their cleaning and tokens, and embeddings read from npz files.

``build(TextConfig)`` gives a :class:`models.text.encoder.TextEncoder`; MindSpore is imported for T5 only.
"""

from models.text.encoder import TextEncoder, build

__all__ = ["TextEncoder", "build"]
