"""What a testbed can do to its nodes: pull cables, end sshd, switch off. The rest as from a user's account."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cluster.injector import NodeInjector
from cluster.node_backend import NodeBackend
from ostrain.plan import NodePlan
from tests.testbed import Node, Testbed


class TestbedInjector(NodeInjector):
    """Power over everything. ``mend`` brings all of it back, nodes that were switched off among them."""

    __test__ = False

    def __init__(self, backend: NodeBackend, bed: Testbed) -> None:
        super().__init__(backend)
        self._nodes = {node.name: node for node in bed.nodes}
        self._timers: list[threading.Timer] = []
        self._mends: dict[str, Callable[[], None]] = {}

    def cut_link(self, node: NodePlan, run_id: str, seconds: float | None) -> float:
        there, when = self._nodes[node.name], time.time()
        there.link_down()
        self._later(f"link of {node.name}", seconds, there.link_up)
        return when

    def cut_sessions(self, node: NodePlan, run_id: str, seconds: float) -> float:
        there, when = self._nodes[node.name], time.time()
        there.stop_sshd()
        self._later(f"sshd of {node.name}", seconds, there.start_sshd)
        return when

    def power_off(self, node: NodePlan, run_id: str) -> float:
        there, when = self._nodes[node.name], time.time()
        there.power_off()
        self._later(f"power of {node.name}", None, lambda: switch_on(there))
        return when

    def _later(self, what: str, seconds: float | None, mend: Callable[[], None]) -> None:
        """Mend it when the time has come, at the latest when everything is mended."""
        self._mends[what] = mend
        if seconds is not None:
            timer = threading.Timer(seconds, self._mend, [what])
            timer.start()
            self._timers.append(timer)

    def _mend(self, what: str) -> None:
        mend = self._mends.pop(what, None)
        if mend is not None:
            mend()

    def mend(self) -> list[str]:
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._timers.clear()
        for what in list(self._mends):
            self._mend(what)
        return super().mend()


def switch_on(node: Node) -> None:
    """A node that was switched off, anew: another boot id, nothing running, its disk as it was."""
    node.reboot()
