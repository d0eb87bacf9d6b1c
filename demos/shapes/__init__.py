"""Coloured shapes that move: from clips made here to videos that a model makes from captions (``make demo-full``)."""
