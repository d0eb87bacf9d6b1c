"""Sequence parallelism: several ranks share the tokens of every sample. Two kinds behind one seam.

``ulysses`` (Jacobs et al. 2023): each rank holds a part of the patches of every frame. Around self attention and cross
attention of spatial blocks, ranks exchange: the whole sequence for a part of the heads. Temporal blocks need no
exchange: every rank has all frames of its patches, and all of the text.
``dsp`` (Zhao et al. 2024, dynamic sequence parallelism): each rank holds a part of the frames. Around temporal
attention, ranks exchange: all frames for a part of the patches, and back.

What is not a multiple of the group is padded with zeros before an exchange and cut off again before any token of
padding could be seen by another: results are those of the undivided model.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor
from mindspore import ops as P

from models.layers.embeddings import zero_pad
from models.parallel.exchange import Exchange, GatherAxis, cut_end, own_part
from models.parallel.mesh import Mesh


class SequenceParallel:
    """What a model asks of either kind. Tokens are [B, T, S, C]: frames, patches of a frame."""

    axis: int  # which axis of the tokens is divided

    def __init__(self, mesh: Mesh) -> None:
        self.group = mesh.sp_group
        self.frames, self.spatial = 0, 0
        self._gather = GatherAxis(self.group, self.axis)

    def begin(self, frames: int, spatial: int) -> None:
        """Sizes of the undivided tokens of the pass that begins: t frames of s patches."""
        self.frames, self.spatial = frames, spatial

    def split(self, x: Tensor) -> Tensor:
        """This rank's part of tokens that every rank holds whole."""
        return own_part(zero_pad(x, self.axis, self.group.size), self.axis, self.group)

    def split_positions(self, positions: Tensor) -> Tensor:
        """This rank's part of the position table [1, 1, S, C]."""
        return positions

    def split_frames(self, mask: Tensor | None) -> Tensor | None:
        """This rank's part of a mask of frames, bool [B, T]."""
        return mask

    def gather(self, x: Tensor) -> Tensor:
        """The whole tokens from every rank's part."""
        return cut_end(self._gather(x), self.axis, self.frames if self.axis == 1 else self.spatial)


class Ulysses(SequenceParallel):
    """Patches are divided; heads are exchanged for them around attention."""

    axis = 2

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh)
        self._in_qkv, self._out = Exchange(self.group, 3, 1), Exchange(self.group, 1, 2)
        self._in_queries = Exchange(self.group, 2, 1)

    def split_positions(self, positions: Tensor) -> Tensor:
        return self.split(positions)

    def sequence_to_heads(self, qkv: Tensor) -> Tensor:
        """[B, S / p, 3, heads, d] -> [B, S, 3, heads / p, d], without padding."""
        return cut_end(self._in_qkv(qkv), 1, self.spatial)

    def heads_to_sequence(self, x: Tensor) -> Tensor:
        """[B, S, heads / p, d] -> [B, S / p, heads, d]."""
        return self._out(zero_pad(x, 1, self.group.size))

    def queries_to_heads(self, q: Tensor) -> Tensor:
        """[B, N / p, heads, d] -> [B, N, heads / p, d]."""
        return self._in_queries(q)

    def heads_to_queries(self, x: Tensor) -> Tensor:
        """[B, N, heads / p, d] -> [B, N / p, heads, d]."""
        return self._out(x)

    def own_heads(self, kv: Tensor) -> Tensor:
        """[B, L, 2, heads, d] -> [B, L, 2, heads / p, d]: text is whole on every rank."""
        return own_part(kv, 3, self.group)


class Dsp(SequenceParallel):
    """Frames are divided; around temporal attention, patches are instead."""

    axis = 1

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh)
        self._to_patches, self._to_frames = Exchange(self.group, 2, 1), Exchange(self.group, 1, 2)

    def split_frames(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        short = -mask.shape[1] % self.group.size
        if short:
            mask = P.concat((mask, P.zeros((mask.shape[0], short), mask.dtype)), 1)
        return own_part(mask, 1, self.group)

    def to_whole_frames(self, x: Tensor) -> Tensor:
        """[B, T / p, S, C] -> [B, T, S / p, C], frames without padding."""
        return cut_end(self._to_patches(zero_pad(x, 2, self.group.size)), 1, self.frames)

    def to_own_frames(self, x: Tensor) -> Tensor:
        """[B, T, S / p, C] -> [B, T / p, S, C], patches without padding."""
        return cut_end(self._to_frames(zero_pad(x, 1, self.group.size)), 2, self.spatial)


def divide(model: Any, mesh: Mesh) -> None:
    """Makes the ranks of a sequence-parallel group share the tokens of ``model``, a transformer of models/stdit."""
    if mesh.sp == 1:
        return
    sequence = Ulysses(mesh) if mesh.layout.sp_kind == "ulysses" else Dsp(mesh)
    model.sequence = sequence
    for block in model.blocks_in_order():
        block.share_tokens(sequence)
