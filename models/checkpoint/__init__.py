"""Checkpoints: shards in safetensors, written by all ranks so that a crash at any byte loses nothing.

``saver`` writes, ``find`` chooses, ``load`` reads in any layout; ``view``, ``convert`` and ``compare`` are for people.
Of these modules only ``state`` and ``restore`` need MindSpore.
"""
