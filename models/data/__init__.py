"""Clips, captions and embeddings: from a CSV to the batch of a step."""
