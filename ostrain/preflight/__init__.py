"""Checks of nodes before a start: what is asked (``request``), what it means (a file a group), what people read."""
