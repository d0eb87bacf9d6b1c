"""Captions as embeddings, read from npz files; and stand-in embeddings where no text encoder is at hand."""
