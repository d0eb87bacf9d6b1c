"""A sentencepiece model file (``spiece.model``), read without the sentencepiece library.

It is a protocol buffer, google/sentencepiece's ``ModelProto``: repeated field 1 holds the pieces (1 text, 2 score,
3 type), field 2 the trainer's settings (3 model type, 40 unk id), field 3 the normaliser's (2 its compiled character
map, 3 whether a space is put in front, 4 whether repeated spaces are one).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNIGRAM = 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class BadModel(ValueError):
    """Not a sentencepiece model, or one cut short; the text says why."""


@dataclass(frozen=True)
class Piece:
    """A piece of text, its logarithmic probability, and its kind (``NORMAL`` …)."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces by id; the id of what is unknown; how texts are normalised before they are cut."""

    pieces: tuple[Piece, ...]
    unk_id: int
    character_map: bytes
    space_in_front: bool
    single_spaces: bool


def read_spiece(path: Path) -> SentencePieceModel:
    """BadModel where it is not a unigram model; OSError."""
    try:
        return _model(path.read_bytes())
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise BadModel(f"is cut short or no sentencepiece model ({error})") from None


def _model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_bytes(value)))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    if trainer.get(3, UNIGRAM) != UNIGRAM:
        raise BadModel("is not a unigram model")
    if not pieces:
        raise BadModel("holds no pieces")
    if not trainer:
        # Settings follow the pieces.
        raise BadModel("is cut short after a piece")
    unknown = [number for number, piece in enumerate(pieces) if piece.kind == UNKNOWN]
    if len(unknown) != 1:
        raise BadModel(f"has {len(unknown)} pieces for unknown text, not one")
    return SentencePieceModel(
        tuple(pieces),
        unknown[0],
        _bytes(normalizer.get(2, b"")),
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
    )


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    kind = fields.get(3, NORMAL)
    score = fields.get(2, b"\0\0\0\0")
    assert isinstance(kind, int)
    return Piece(_bytes(fields[1]).decode(), float(struct.unpack("<f", _bytes(score))[0]), kind)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number stands where text is expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of every field of a message: numbers as int, everything else as bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise BadModel(f"is no sentencepiece model (wire type {wire})")
        if place + size > len(data):
            raise BadModel("is cut short")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise BadModel("is no sentencepiece model (endless number)")
