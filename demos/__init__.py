"""Demonstrations: whole stories told with ostrain's own commands."""
