"""Weights of other programs: reading their files, translating their names, fitting them to a model.

Needs numpy only, neither MindSpore nor PyTorch. ``python -m models.convert SRC DST`` is the command.
"""
