"""One run of a drill: submit, wait for the moment, break something, watch what follows, measure."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.backend import Backend, NodeError
from cluster.injector import CannotInject, Injector
from ostrain.drill.commands import Commands
from ostrain.drill.faults import Fault, Injection
from ostrain.drill.logs import LogFollower, LogLoss, measure
from ostrain.drill.scene import Scene
from ostrain.drill.settings import Rehearsed
from ostrain.drill.verdict import Facts, LossPair, Verdict, judge
from ostrain.drill.watcher import LOOK, Watcher
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan, NodePlan
from ostrain.store import Run, Store, owner_alive
from ostrain.stragglers import stragglers

ENDED_FOR = 8.0  # seconds that a run stays ended before nobody is expected to start it again
LEFTOVERS = 20.0  # seconds that the last processes have to go


@dataclass
class Bounds:
    """How long things may take, in seconds. start: to the first step; step: one step at most, on average."""

    start: float = 900.0
    recover: float = 900.0
    step: float = 60.0


@dataclass
class Ground:
    """What all cases of a drill share. opened: a backend of a plan; the caller of it closes it."""

    store: Store
    rehearsed: Rehearsed
    opened: Callable[[LaunchPlan], Backend]
    injector: Callable[[Backend], Injector]
    folder: Path
    say: Callable[[str], None]
    bounds: Bounds = field(default_factory=Bounds)
    keep: bool = False


class Case:
    """One run. ``close`` has to be called whatever happens: it mends what was broken and ends what was started."""

    def __init__(self, ground: Ground, fault: Fault | None, seed: int) -> None:
        self.ground, self.fault, self.seed = ground, fault, seed
        self.name = f"{fault.name if fault else 'undisturbed'}-{seed}"
        self.random = random.Random(f"{self.name}")
        self.commands = Commands(ground.folder / self.name)
        self.run_id = ""
        self._watcher: Watcher | None = None
        self._injector: Injector | None = None
        self._backends: list[Backend] = []
        self._follower: LogFollower | None = None

    # ---- the story -------------------------------------------------------------------------------------------------

    def submit(self) -> None:
        """Start the run and everything that watches it."""
        settings = self.ground.rehearsed.of(self.fault, self.random.randrange(20000, 32000))
        # A client that stays is the supervisor; one that goes leaves a supervisor behind. Both die in a drill. Of the
        # undisturbed run, which nobody supervises, the client is the one who sees the end.
        follow = self.fault is None or (self.fault.name == "client_kill" and self.seed % 2 == 0)
        self.run_id = self.commands.submit(self.ground.rehearsed.job, settings, follow=follow)
        plan = self.ground.store.get(self.run_id).plan
        self._injector = self.ground.injector(self._open(plan))
        self._watcher = Watcher(self.ground.store, self.run_id, self._open(plan))
        self._follower = LogFollower(self.commands, self.run_id)

    def _open(self, plan: LaunchPlan) -> Backend:
        backend = self.ground.opened(plan)
        self._backends.append(backend)
        return backend

    @property
    def watcher(self) -> Watcher:
        assert self._watcher is not None, "submit comes first"
        return self._watcher

    def look(self) -> Run:
        """The run now."""
        return self.watcher.tick()

    def wait(self, until: Callable[[], bool], bound: float, what: str) -> None:
        """OstrainError when the run has ended for good before ``until``, or after ``bound`` seconds."""
        deadline = time.monotonic() + bound
        ended_since: float | None = None
        while not until():
            run, now = self.look(), time.monotonic()
            ended = run.state.final and run.settled and not run.supervised
            ended_since = (ended_since or now) if ended else None
            patience = 0.0 if run.state.value == "SUCCEEDED" else ENDED_FOR
            if ended_since is not None and now - ended_since >= patience:
                if until():
                    return
                raise OstrainError(f"{run.state.value} ({run.reason}) before {what}")
            if now > deadline:
                raise OstrainError(f"no {what} within {bound:.0f} s; it is {run.state.value} ({run.reason})")
            time.sleep(LOOK)

    def wait_for_moment(self) -> None:
        """Past a checkpoint, at a step and at a moment within it that the seed chooses."""
        assert self.fault is not None
        rehearsed = self.ground.rehearsed
        first = rehearsed.every + 2
        last = rehearsed.steps - max(first, rehearsed.watched(self.fault))
        target = self.random.randint(first, max(first, last))
        seen, bounds = self.watcher.seen, self.ground.bounds

        def reached() -> bool:
            return seen.newest_step(1) >= target and seen.newest_checkpoint(1) > 0

        self.wait(reached, bounds.start + target * bounds.step, f"step {target} with a checkpoint")
        times = [seen.first_seen[1][step] for step in sorted(seen.first_seen[1])]
        pace = (times[-1] - times[0]) / max(1, len(times) - 1)
        time.sleep(self.random.uniform(0.0, min(pace, 10.0)))

    def disturb(self) -> tuple[Injection, int]:
        """Break something; what, and in which attempt."""
        assert self.fault is not None and self._injector is not None
        run = self.look()
        scene = Scene(
            run_id=self.run_id,
            plan=run.plan,
            random=self.random,
            injector=self._injector,
            statuses=self.watcher.statuses(),
            kill_supervisor=self._kill_supervisor,
            supervise=self._supervise,
        )
        return self.fault.inject(scene), run.attempt

    def _kill_supervisor(self) -> None:
        supervisor = self.ground.store.get(self.run_id).supervisor
        if not owner_alive(supervisor):
            raise OstrainError(f"nobody supervises {self.run_id}; it should be supervised by now")
        os.kill(int(supervisor.partition(":")[0]), signal.SIGKILL)

    def _supervise(self) -> None:
        self.commands.call("supervise", self.run_id, "--detach")

    def wait_for_recovery(self, attempt: int) -> None:
        """A few steps of a later attempt; or of this one, where nothing has to be started again."""
        assert self.fault is not None
        seen, bounds, expect = self.watcher.seen, self.ground.bounds, self.fault.expect
        watched = self.ground.rehearsed.watched(self.fault)
        target = min(seen.newest_step(attempt) + watched, self.ground.rehearsed.steps)

        def recovered() -> bool:
            later = [one for one in seen.losses if one > attempt]
            if later:
                return len(seen.losses[max(later)]) >= watched
            return expect.restart != "yes" and seen.newest_step(attempt) >= target

        self.wait(recovered, bounds.recover, "recovery")

    def slowest(self, since: int) -> str:
        """The node of the rank that the others waited for in the steps after ``since``; empty where none stands out."""
        time.sleep(2 * LOOK)  # the last step's lines of other ranks
        records = self.watcher.seen.records
        found = stragglers({rank: [row for row in rows if row["step"] > since] for rank, rows in records.items()})
        plan = self.watcher.run.plan
        return next((node.name for node in plan.nodes if found and found[0].rank in node.ranks), "")

    def finish(self) -> Run:
        """To the end of the run; the run as it ended."""
        steps, bounds = self.ground.rehearsed.steps, self.ground.bounds
        self.wait(self._succeeded, steps * bounds.step, "the end of the run")
        return self.look()

    def _succeeded(self) -> bool:
        run = self.watcher.run
        return run.state.value == "SUCCEEDED" and run.settled and not run.supervised

    # ---- what is left ----------------------------------------------------------------------------------------------

    def mend(self) -> None:
        if self._injector is not None:
            for text in self._injector.mend():
                self.ground.say(f"  not mended: {text}")

    def everywhere(self) -> LaunchPlan:
        """A plan of every node that ever took part."""
        plan = self.watcher.run.plan.everywhere()
        gone = [node for name, node in self.watcher.nodes.items() if name not in {one.name for one in plan.nodes}]
        return replace(plan, nodes=(*plan.nodes, *gone))

    def leftovers(self) -> dict[str, int]:
        """Processes of the run by node, once they had time to go. Nodes that do not answer are left out."""
        deadline = time.monotonic() + LEFTOVERS
        while True:
            found = {node.name: len(self._processes(node)) for node in self.everywhere().nodes}
            if not any(found.values()) or time.monotonic() > deadline:
                return {name: count for name, count in found.items() if count}
            time.sleep(1.0)

    def _processes(self, node: NodePlan) -> list[object]:
        assert self._injector is not None
        try:
            return list(self._injector.look(node, self.run_id)["processes"])
        except NodeError:
            return []  # out of reach; said where its logs are missed, too

    def logs(self) -> LogLoss:
        assert self._follower is not None
        shown = self._follower.finish()
        return measure(self._backends[0], self.run_id, self.everywhere(), shown)

    def close(self) -> None:
        """Mend, end, delete."""
        try:
            self.mend()
        finally:
            if self._watcher is not None:
                self._watcher.close()
            if self.run_id:
                self.commands.call("cancel", self.run_id, "--grace", "2", check=False)
                if not self.ground.keep:
                    self.commands.call("rm", "--yes", self.run_id, check=False)
            self.commands.kill_children()
            for backend in self._backends:
                backend.close()


def undisturbed(ground: Ground) -> dict[int, LossPair]:
    """The losses that every disturbed run is compared with."""
    case = Case(ground, None, 0)
    try:
        case.submit()
        case.wait(case._succeeded, ground.bounds.start + ground.rehearsed.steps * ground.bounds.step, "its end")
        losses = case.watcher.seen.final_losses()
        if sorted(losses) != list(range(1, ground.rehearsed.steps + 1)):
            raise OstrainError(f"the undisturbed run {case.run_id} made {len(losses)} steps, not all of them")
        times = [min(case.watcher.seen.first_seen[1].values()), max(case.watcher.seen.first_seen[1].values())]
        ground.bounds.step = max(5.0, 8 * (times[1] - times[0]) / ground.rehearsed.steps)
        return losses
    finally:
        case.close()


def rehearse(ground: Ground, fault: Fault, seed: int, base: dict[int, LossPair]) -> Verdict:
    """One fault, once. Whatever goes wrong is in the verdict; only an interrupt passes through."""
    begun = time.monotonic()
    case = Case(ground, fault, seed)
    try:
        verdict = _rehearse(case, fault, base)
    except CannotInject as error:
        verdict = Verdict(fault.name, cannot=error.why)
    except OstrainError as error:
        verdict = Verdict(fault.name, problems=(error.what, *([error.why] if error.why else [])))
    finally:
        case.close()
    return replace(verdict, run_id=case.run_id, seed=seed, seconds=round(time.monotonic() - begun, 1))


def _rehearse(case: Case, fault: Fault, base: dict[int, LossPair]) -> Verdict:
    ground = case.ground
    case.submit()
    case.wait_for_moment()
    before = len(case.watcher.run.plan.nodes)
    injection, attempt = case.disturb()
    ground.say(f"  step {case.watcher.seen.newest_step(attempt)}: {injection.told}")
    step, trouble, slow = case.watcher.seen.newest_step(attempt), "", ""
    try:
        case.wait_for_recovery(attempt)
        slow = case.slowest(step)
        case.mend()
        case.finish()
    except OstrainError as error:
        trouble = error.what
        case.mend()
    run = case.look()
    verdict = judge(
        Facts(
            fault=fault, injection=injection, attempt=attempt, seen=case.watcher.seen, journal=case.watcher.journal,
            base=base, steps=ground.rehearsed.steps, every=ground.rehearsed.every,
            hang_timeout=ground.rehearsed.hang_timeout, smaller=ground.rehearsed.smaller(fault),
            state=run.state.value, reason=run.reason, attempts=run.attempt, nodes_before=before,
            nodes_after=len(run.plan.nodes), logs=LogLoss() if trouble else case.logs(),
            left={} if trouble else case.leftovers(),
            supervisor_left=not trouble and run.supervised, store=store_state(ground.store), straggler=slow,
        )
    )  # fmt: skip
    return replace(verdict, problems=(*((trouble,) if trouble else ()), *verdict.problems))


def store_state(store: Store) -> str:
    """``ok``, or what SQLite finds wrong with the run store."""
    connection = sqlite3.connect(f"file:{store.path}?mode=ro", uri=True, timeout=30.0)
    try:
        rows = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    finally:
        connection.close()
    return "; ".join(rows)
