"""Whatever a file or a node says: a problem in words, never a traceback, a hang, or a half-written file.

`python -m tests.fuzz --examples 5000 [TARGET …]` looks longer, and elsewhere each time.
"""
