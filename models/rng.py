"""Random numbers by purpose and counter, on the host.

Every random draw of a run (noise, timesteps, caption drops, clip windows, initial weights) comes from a stream named by
what it is for and where in the run it belongs, never from a global generator. The same names give the same numbers on
every rank, layout and device, before and after a resume.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """A Philox generator keyed by (seed, purpose, counters).

    The key is the first 128 bits of BLAKE2b over a text with the length of every part, so neighbouring counters give
    unrelated streams and ("a", 12) differs from ("a1", 2). Numbers do not depend on Python's hash seed.
    """
    parts = [str(int(seed)), purpose]
    parts += [f"s{value}" if isinstance(value, str) else f"i{int(value)}" for value in counters]
    text = "".join(f"{len(part)}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))
