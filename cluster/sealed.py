"""Secrets for containers nobody can log in to, in two halves that tell nothing alone.

A job's secrets go as one JSON text ``XOR`` a one-time pad of random bytes. The pad is an object in the user's bucket,
the other half an environment variable of the job, which the service stores and shows. Either alone is noise: each byte
of it takes every value with the same probability whatever the secrets are. The pad is deleted when the run has ended.
"""

from __future__ import annotations

import base64
import json
import secrets as random_bytes
from collections.abc import Mapping
from dataclasses import dataclass, field

from ostrain.errors import OstrainError

VARIABLE = "OSTRAIN_SEALED_"  # with a number: a value of the service's environment has at most 4096 letters
_PIECE = 4000
_MOST = 20
_BLOCK = 256  # lengths are rounded up, so that they say little of the secrets


@dataclass(frozen=True)
class Sealed:
    """pad: the object's bytes. environment: variable -> text, for the job."""

    pad: bytes = field(repr=False)
    environment: dict[str, str] = field(repr=False)


def seal(values: Mapping[str, str]) -> Sealed:
    """Both halves of ``values`` (variable -> secret). OstrainError when they are too large for a job's environment."""
    text = json.dumps(dict(values)).encode()
    text += b" " * (-len(text) % _BLOCK)
    pad = random_bytes.token_bytes(len(text))
    letters = base64.b64encode(bytes(a ^ b for a, b in zip(text, pad, strict=True))).decode()
    pieces = [letters[start : start + _PIECE] for start in range(0, len(letters), _PIECE)]
    if len(pieces) > _MOST:
        raise OstrainError(
            f"the job's secrets are too large for ModelArts: {len(text)} bytes",
            why=f"at most {_MOST * _PIECE * 3 // 4} bytes travel in a job's environment",
            next_step="put large ones into a volume",
            exit_code=2,
        )
    return Sealed(pad, {f"{VARIABLE}{index}": piece for index, piece in enumerate(pieces)})
