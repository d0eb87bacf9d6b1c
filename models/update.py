"""From reduced gradients to new weights: clipping by the norm over the whole model, AdamW, moving average.

The optimizer works on *targets*, float32: the parameters themselves (ZeRO 0), or this rank's shard of every unit
(ZeRO 1 to 3). Where the model computes in half precision the targets are copies in full precision (master weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from mindspore import ops as P

from models import ops
from models.checkpoint.pieces import KINDS, Piece
from models.config import TrainConfig
from models.optim import EMA, AdamW
from models.optim.host import HostAdamW
from models.parallel.mesh import Mesh
from models.parallel.sources import Weights
from models.parallel.units import Range, Unit, host
from models.parallel.world import host_threads


@dataclass(frozen=True)
class _Target:
    """One tensor of the optimizer and the parts of parameters it holds."""

    ranges: list[Range]
    size: int


class Update:
    """Owns the optimizer's state. Call :meth:`reduce` for every unit, then :meth:`apply`."""

    def __init__(self, weights: Weights, mesh: Mesh, config: TrainConfig, compiled: bool) -> None:
        self.weights, self.mesh, self.config = weights, mesh, config
        self.zero = config.layout.zero if mesh.size > 1 else 0
        self.offload = config.optimizer.offload
        half = weights.dtype != ms.float32
        self._copies = bool(half or self.zero or self.offload)  # targets are not the model's own parameters
        values = self._initial_values()
        self._gradients: list[list[Tensor]] = [[] for _ in weights.units]
        self._last: tuple[tuple[str, int, int], np.ndarray] | None = None
        if self.offload:
            self._host = HostAdamW(values, config.optimizer, config.ema_decay, host_threads(mesh.size))
        else:
            self._on_device(values, compiled)
        if half:
            for param in weights.params.values():
                param.set_dtype(weights.dtype)
        if self.zero == 3:
            self._share_shards()

    def _initial_values(self) -> list[np.ndarray]:
        """Flat values of all targets, from the model's parameters; sets ``targets``."""
        units, rank = self.weights.units, self.mesh.rank
        self.targets: list[_Target] = []
        values = []
        for unit in units:
            arrays = [host(self.weights.params[name]).reshape(-1) for name in unit.names]
            if self.zero:
                self.targets.append(_Target(unit.ranges(rank), unit.width))
                values.append(unit.shard(np.concatenate(arrays), rank))
                if self.zero == 3:
                    self._give_up(unit)
            else:
                sizes = zip(unit.names, unit.sizes, strict=True)
                self.targets += [_Target([Range(name, 0, size, 0)], size) for name, size in sizes]
                values += arrays
        return values

    def _on_device(self, values: list[np.ndarray], compiled: bool) -> None:
        names = [name for unit in self.weights.units for name in unit.names]
        if not self._copies:
            params = [self.weights.params[name] for name in names]
        else:
            shapes = [shape for unit in self.weights.units for shape in unit.shapes.values()]
            params = []
            for number in range(len(self.targets)):
                value = values.pop(0)  # freed one by one as they are copied
                named = (f"unit-{number}", value) if self.zero else (names[number], value.reshape(shapes[number]))
                params.append(Parameter(Tensor(named[1]), name=named[0]))
        self.params = params
        compiled = compiled and not self.zero
        # Eager layouts shard the same elements differently: what they become must not depend on it.
        self.optimizer = AdamW(params, self.config.optimizer, exact=not compiled)
        self.ema = EMA(params, self.config.ema_decay) if self.config.ema_decay is not None else None
        self._compiled = ms.jit(_update_function(self.optimizer, self.ema)) if compiled else None

    def _give_up(self, unit: Unit) -> None:
        """ZeRO 3: the unit's whole weights make room for its shard's states."""
        for name in unit.names:
            param = self.weights.params[name]
            param.set_data(Tensor(np.zeros(1, np.float32), param.dtype), slice_shape=True)

    def _share_shards(self) -> None:
        """ZeRO 3: layers gather from the targets themselves."""
        self.weights.shards = [self._value(number) for number in range(len(self.targets))]
        self.weights.forget()

    def _value(self, number: int) -> Tensor:
        return Tensor(self._host.values[number]) if self.offload else self.params[number]

    def reduce(self, number: int, flat: Tensor) -> None:
        """Sums a unit's flat gradient over all ranks and keeps what this rank's optimizer needs of it."""
        everyone = self.mesh.everyone
        if self.zero:
            self._gradients[number] = [everyone.reduce_scatter(flat)]
        else:
            self._gradients[number] = self.weights.units[number].split(everyone.all_reduce(flat))

    def squares(self) -> float:
        """Sum of squares of the summed gradients over the whole model; the same number on every rank."""
        own = ops.total_squares([gradient for unit in self._gradients for gradient in unit])
        if not self.zero:
            return own
        # Bits of a double travel as two floats: added up in full precision, in the same order everywhere.
        value = np.array([own], np.float64)
        parts = self.mesh.everyone.all_gather(Tensor(value.view(np.float32))).asnumpy().view(np.float64)
        return float(parts.sum())

    def apply(self, factor: float, lr: float) -> None:
        """AdamW with ``factor`` times the summed gradients, the moving average, and the model's new weights."""
        gradients = [gradient for unit in self._gradients for gradient in unit]
        self.drop_gradients()
        if self.offload:
            self._host.step([host(gradient).reshape(-1) for gradient in gradients], lr, factor)
        elif self._compiled is not None:
            self._compiled(Tensor(np.float32(factor)), self.optimizer.advance(lr), *gradients)
        else:
            self._one_by_one(Tensor(np.float32(factor)), self.optimizer.advance(lr), gradients)
        self.write_back()

    def _one_by_one(self, factor: Tensor, hyper: Tensor, gradients: list[Tensor]) -> None:
        """The update, target by target: a gradient's memory is free again before the next one is needed."""
        for number in reversed(range(len(gradients))):
            self.optimizer.update_one(number, gradients.pop() * factor, hyper)
            if self.ema is not None:
                self.ema.update_one(number)

    def drop_gradients(self) -> None:
        self._gradients = [[] for _ in self.weights.units]

    def write_back(self) -> None:
        """The model's weights from the targets, where those are copies. A collective under ZeRO 1 and 2."""
        if self.zero == 3:
            self._share_shards()
        elif self._copies:
            for number, unit in enumerate(self.weights.units):
                for name, value in zip(unit.names, self._whole(number), strict=True):
                    P.assign(self.weights.params[name], value)

    def _whole(self, number: int) -> list[Tensor]:
        unit, dtype = self.weights.units[number], self.weights.dtype
        if self.zero:
            return unit.split(self.mesh.everyone.all_gather(self._value(number).astype(dtype)))
        first = sum(len(before.names) for before in self.weights.units[:number])
        values = [self._value(first + place).astype(dtype) for place in range(len(unit.names))]
        return [value.reshape(shape) for value, shape in zip(values, unit.shapes.values(), strict=True)]

    @property
    def count(self) -> int:
        """Updates done."""
        return self._host.count if self.offload else self.optimizer.count

    @count.setter
    def count(self, value: int) -> None:
        if self.offload:
            self._host.count = value
        else:
            self.optimizer.count = value

    def wanted(self) -> list[tuple[str, str, int, int]]:
        """(kind, name, start, stop) of everything :meth:`fill` will ask for."""
        ranges = [held for target in self.targets for held in target.ranges]
        return [(kind, held.name, held.start, held.stop) for kind in saved_kinds(self.config) for held in ranges]

    def pieces(self) -> Iterator[Piece]:
        """What this rank writes into a checkpoint: its shards, or its share of what every rank holds."""
        shapes = {name: shape for unit in self.weights.units for name, shape in unit.shapes.items()}
        for kind in saved_kinds(self.config):
            for number, target in enumerate(self.targets):
                for held in target.ranges:
                    start, stop = self._own_share(held)
                    if start < stop:
                        take = self._taker(kind, number, held.offset + start - held.start, stop - start)
                        yield Piece(kind, held.name, shapes[held.name], start, stop, take)

    def _own_share(self, held: Range) -> tuple[int, int]:
        return (held.start, held.stop) if self.zero else own_share(held.stop, self.mesh)

    def _taker(self, kind: str, number: int, offset: int, count: int) -> Callable[[], np.ndarray]:
        return lambda: self._array(kind, number)[offset : offset + count]

    def _array(self, kind: str, number: int) -> np.ndarray:
        """A target's flat values of a kind, in host memory. The last one is kept: a target has many ranges."""
        if self.offload:
            return self._host_arrays(kind)[number]
        if self._last is None or self._last[0] != (kind, number, self.count):
            values = np.asarray(self._slots(kind)[number].asnumpy(), np.float32).reshape(-1)
            self._last = ((kind, number, self.count), values)
        return self._last[1]

    def _host_arrays(self, kind: str) -> list[np.ndarray]:
        arrays: Mapping[str, Any] = {
            "model": self._host.values,
            "ema": self._host.averages,
            "exp_avg": self._host.exp_avg,
            "exp_avg_sq": self._host.exp_avg_sq,
        }
        return list(arrays[kind])

    def _slots(self, kind: str) -> list[Parameter]:
        if kind == "model":
            return list(self.params)
        if kind == "ema":
            assert self.ema is not None
            return list(self.ema.averages)
        return list(self.optimizer.exp_avg if kind == "exp_avg" else self.optimizer.exp_avg_sq)

    def fill(self, kind: str, read: Callable[[list[tuple[str, str, int, int]]], Iterator[np.ndarray]]) -> None:
        """Sets all targets' values of a kind; ``read`` gives the flat values of (kind, name, start, stop)."""
        for number, target in enumerate(self.targets):
            array = np.zeros(target.size, np.float32)
            wanted = [(kind, held.name, held.start, held.stop) for held in target.ranges]
            for held, values in zip(target.ranges, read(wanted), strict=True):
                array[held.offset : held.offset + values.size] = values
            if self.offload:
                self._host_arrays(kind)[number][:] = array
            else:
                slot = self._slots(kind)[number]
                slot.set_data(Tensor(array.reshape(slot.shape)))

    def exchange_averages(self) -> None:
        """Weights and moving averages change places; nothing where there are no averages.

        A second call puts everything back, to the bit.
        """
        if self.config.ema_decay is None:
            return
        if self.offload:
            for value, average in zip(self._host.values, self._host.averages or (), strict=True):
                value[:], average[:] = average.copy(), value.copy()
        else:
            assert self.ema is not None
            for param, average in zip(self.params, self.ema.averages, strict=True):
                held = Tensor(param.asnumpy().copy())
                P.assign(param, average)
                P.assign(average, held)
        self._last = None
        self.write_back()

    def restart_averages(self) -> None:
        """Averages from the weights as they are now."""
        for number in range(len(self.targets)):
            if self.offload and self._host.averages is not None:
                self._host.averages[number][:] = self._host.values[number]
            elif not self.offload and self.ema is not None:
                self.ema.averages[number].set_data(Tensor(self.params[number].asnumpy().copy()))


def saved_kinds(config: TrainConfig) -> tuple[str, ...]:
    """Kinds of tensors a checkpoint holds of every trainable parameter."""
    return tuple(kind for kind in KINDS if kind != "ema" or config.ema_decay is not None)


def own_share(size: int, mesh: Mesh) -> tuple[int, int]:
    """This rank's part of ``size`` elements that every rank holds: all ranks write a checkpoint together."""
    return size * mesh.rank // mesh.size, size * (mesh.rank + 1) // mesh.size


def _update_function(optimizer: AdamW, ema: EMA | None) -> Callable[..., bool]:
    """(factor, factors of the optimizer, gradients one by one) -> update of weights and averages.

    Tensors inside a tuple count as constants of a compiled function, and every step would be compiled anew.
    """

    def update(factor: Tensor, hyper: Tensor, *gradients: Tensor) -> bool:
        scaled = [gradient * factor for gradient in gradients]
        optimizer(tuple(scaled), hyper)
        if ema is not None:
            ema()
        return True

    return update
