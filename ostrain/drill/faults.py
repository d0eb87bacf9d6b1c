"""The faults a drill knows: what each breaks, and what should follow. One small class each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ostrain.drill.scene import Scene

DETECT = 15.0  # seconds from a fault to its detection
HANG_MARGIN = 10.0  # a hang is known so many seconds after the job's hang_timeout
FOR_LONG = 900.0  # longer than any recovery; whatever is held so long is mended when the case is over


@dataclass(frozen=True)
class Expect:
    """What should follow a fault.

    restart: whether another attempt is needed; either: whatever the supervisor thinks right. named: what the supervisor
    has to name rightly. reasons: words of docs/runs.md, one of which has to be given; none: not looked at. within:
    seconds to detect it in, on top of the job's ``hang_timeout`` where ``hang`` is set. straggler: the node has to be
    found in the metrics as the one that the others wait for. steps: how many to watch before it is mended.
    """

    restart: Literal["yes", "no", "either"] = "yes"
    named: Literal["rank", "node", "nobody"] = "rank"
    reasons: tuple[str, ...] = ()
    within: float = DETECT
    hang: bool = False
    straggler: bool = False
    steps: int = 3


@dataclass(frozen=True)
class Injection:
    """What was done. time: on this machine's clock, just before it was done; told: for people."""

    time: float
    node: str | None
    rank: int | None
    told: str


class Fault:
    """A kind of fault.

    loses_node: whether the node cannot be used any more: a spare takes its place, or the job goes on with fewer.
    may_use_spare: whether a spare is there for it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    expect: ClassVar[Expect]
    loses_node: ClassVar[Literal["yes", "no", "maybe"]] = "no"
    may_use_spare: ClassVar[bool] = True

    def settings(self, port: int) -> Sequence[str]:
        """Settings of the job that this fault needs beyond the common ones. port: some port, another in each case."""
        return ()

    def inject(self, scene: Scene) -> Injection:
        raise AssertionError("every fault says how")


class WorkerKill(Fault):
    name = "worker_kill"
    title = "a worker is killed (SIGKILL)"
    expect = Expect(reasons=("worker_killed",))

    def inject(self, scene: Scene) -> Injection:
        victim = scene.any_worker()
        when = scene.injector.kill(victim.node, scene.run_id, [victim.pid])
        return Injection(when, victim.node.name, victim.rank, f"killed rank {victim.rank} on {victim.node.name}")


class AgentKill(Fault):
    name = "agent_kill"
    title = "a node agent is killed (SIGKILL)"
    expect = Expect(named="node", reasons=("agent_lost",))

    def inject(self, scene: Scene) -> Injection:
        node = scene.any_node()
        when = scene.injector.kill(node, scene.run_id, [scene.agent_pid(node)])
        return Injection(when, node.name, None, f"killed the agent on {node.name}")


class WorkerStop(Fault):
    name = "worker_stop"
    title = "a worker hangs (SIGSTOP)"
    expect = Expect(reasons=("hung",), within=HANG_MARGIN, hang=True)

    def inject(self, scene: Scene) -> Injection:
        victim = scene.any_worker()
        when = scene.injector.hold(victim.node, scene.run_id, "stop", FOR_LONG, pids=[victim.pid])
        return Injection(when, victim.node.name, victim.rank, f"stopped rank {victim.rank} on {victim.node.name}")


class LinkDown(Fault):
    name = "link_down"
    title = "a node's network link goes down"
    expect = Expect(named="node", reasons=("node_lost",))
    loses_node = "yes"

    def inject(self, scene: Scene) -> Injection:
        node = scene.any_node()
        when = scene.injector.cut_link(node, scene.run_id, None)
        return Injection(when, node.name, None, f"cut the link of {node.name}")


class LinkFlap(Fault):
    name = "link_flap"
    title = "a link goes down and comes back"
    # A short one is ridden out by TCP, a long one costs the node its place; both are right.
    expect = Expect(restart="either", named="node", reasons=("node_lost", "hung"))
    loses_node = "maybe"

    def inject(self, scene: Scene) -> Injection:
        node, seconds = scene.any_node(), scene.random.uniform(3.0, 25.0)
        when = scene.injector.cut_link(node, scene.run_id, seconds)
        return Injection(when, node.name, None, f"cut the link of {node.name} for {seconds:.0f} s")


class SshdKill(Fault):
    name = "sshd_kill"
    title = "sshd is killed and comes back"
    expect = Expect(restart="no", named="node")

    def inject(self, scene: Scene) -> Injection:
        node, seconds = scene.any_node(), scene.random.uniform(2.0, 6.0)
        when = scene.injector.cut_sessions(node, scene.run_id, seconds)
        return Injection(when, node.name, None, f"killed sshd on {node.name}, back after {seconds:.0f} s")


class DiskFull(Fault):
    name = "disk_full"
    title = "the disk of the run is full"
    expect = Expect(named="node", reasons=("disk_full",))
    loses_node = "yes"

    def inject(self, scene: Scene) -> Injection:
        node = scene.any_node()
        when = scene.injector.hold(node, scene.run_id, "fill", FOR_LONG)
        return Injection(when, node.name, None, f"filled the disk of {node.name}")


class NodeGone(Fault):
    name = "node_gone"
    title = "a node is gone for good, a spare is there"
    expect = Expect(named="node", reasons=("node_lost",))
    loses_node = "yes"

    def inject(self, scene: Scene) -> Injection:
        node = scene.any_node()
        when = scene.injector.power_off(node, scene.run_id)
        return Injection(when, node.name, None, f"switched {node.name} off")


class NodeGoneNoSpare(NodeGone):
    name = "node_gone_no_spare"
    title = "a node is gone for good, no spare is left"
    may_use_spare = False


class ClientKill(Fault):
    """Nobody watches when a worker dies; a new supervisor finds it."""

    name = "client_kill"
    title = "client and supervisor are killed, then a worker"
    expect = Expect(reasons=("worker_killed",))

    def inject(self, scene: Scene) -> Injection:
        scene.kill_supervisor()
        scene.sleep(scene.random.uniform(0.0, 2.0))
        done = WorkerKill().inject(scene)
        scene.sleep(scene.random.uniform(0.0, 4.0))
        when = time.time()
        scene.supervise()
        return replace(done, time=when, told=f"killed the supervisor, {done.told}, started a new supervisor")


class PortStolen(Fault):
    """The attempt ends, and before the next one somebody else listens on the scheduler's port."""

    name = "port_stolen"
    title = "the scheduler's port is taken before a restart"
    expect = Expect(reasons=("worker_killed",))

    def settings(self, port: int) -> Sequence[str]:
        return (f"master_port={port}",)

    def inject(self, scene: Scene) -> Injection:
        master = next((node for node in scene.plan.nodes if node.address == scene.plan.master_address), None)
        master = master or scene.plan.nodes[0]
        address, port = scene.plan.master_address or master.address, scene.plan.master_port
        seconds = scene.random.uniform(8.0, 20.0)
        done = WorkerKill().inject(scene)
        scene.injector.hold(master, scene.run_id, "port", seconds, address=address, port=port)
        return replace(done, told=f"{done.told}, took port {port} of {master.name} for {seconds:.0f} s")


class SlowNode(Fault):
    name = "slow_node"
    title = "a node runs at a quarter of its speed"
    expect = Expect(restart="no", named="node", straggler=True, steps=6)

    def inject(self, scene: Scene) -> Injection:
        node = scene.any_node()
        pids = scene.pids_of(node)
        when = scene.injector.hold(node, scene.run_id, "slow", FOR_LONG, pids=pids, off=0.3, on=0.1)
        return Injection(when, node.name, None, f"slowed {node.name} down")


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        WorkerKill(), AgentKill(), WorkerStop(), LinkDown(), LinkFlap(), SshdKill(), DiskFull(), NodeGone(),
        NodeGoneNoSpare(), ClientKill(), PortStolen(), SlowNode(),
    )
}  # fmt: skip
