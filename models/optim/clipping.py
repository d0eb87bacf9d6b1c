"""Global norm of gradients and clipping by it. Works in PyNative and inside ``ms.jit``."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor
from mindspore import ops as P

from models import ops


def sum_of_squares(grads: Sequence[Tensor]) -> Tensor:
    """Scalar float32: of all gradients together. Shards of one gradient add up by summing this over ranks."""
    return P.addn([ops.sum_of_squares(grad) for grad in grads])


def global_norm(grads: Sequence[Tensor]) -> Tensor:
    """Scalar float32 Euclidean norm over all gradients."""
    return P.sqrt(sum_of_squares(grads))


def clip(grads: Sequence[Tensor], norm: Tensor, max_norm: float) -> tuple[Tensor, ...]:
    """Gradients times max_norm / (norm + 1e-6), at most 1: torch.nn.utils.clip_grad_norm_ with a norm already known.

    A norm that is not finite makes every gradient so: check it before the optimizer step.
    """
    scale = P.minimum(max_norm / (norm + 1e-6), P.ones_like(norm))
    return tuple([grad * scale.astype(grad.dtype) for grad in grads])
