"""What a drill asks for, and what it makes of what it saw."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ostrain.cli.drill import drill
from ostrain.drill.case import Case, Ground, rehearse
from ostrain.drill.faults import FAULTS, Injection
from ostrain.drill.logs import LogLoss, compare, read_shown
from ostrain.drill.rehearsal import Rehearsal
from ostrain.drill.scene import Scene
from ostrain.drill.settings import TIMED_EVERY, chosen_faults, rehearse_job
from ostrain.drill.text import line, summary
from ostrain.drill.verdict import Facts, Verdict, compare_losses, judge
from ostrain.drill.watcher import Seen
from ostrain.errors import OstrainError, SpecError
from ostrain.plan import LaunchPlan
from ostrain.spec import load_job
from ostrain.store import Store
from ostrain.supervisor.journal import Entry
from tests.ostrain.test_store import plan

QUICKSTART = Path("quickstart")
FAULT_TIME = 1000.0


def losses(steps: range) -> dict[int, tuple[float | None, float | None]]:
    return {step: (1.0 / step, 2.0 / step) for step in steps}


BASE = losses(range(1, 25))


def seen(second: range = range(13, 25)) -> Seen:
    """Fifteen steps of attempt 1, then those of attempt 2."""
    made = Seen(losses={1: losses(range(1, 16)), 2: losses(second)})
    made.first_seen = {
        1: {step: 900.0 + step for step in range(1, 16)},
        2: {step: 1040.0 + step - 13 for step in second},
    }
    return made


def facts(**changes: Any) -> Facts:
    """A killed worker from which everything recovered as it should."""
    known: dict[str, Any] = {
        "fault": FAULTS["worker_kill"],
        "injection": Injection(FAULT_TIME, "n1", 1, "killed rank 1 on n1"),
        "attempt": 1,
        "attempts": 2,
        "seen": seen(),
        "journal": [entry(1001.5, "n1", 1, "worker_killed")],
        "base": BASE,
        "steps": 24,
        "every": 4,
        "hang_timeout": 10.0,
        "smaller": False,
        "state": "SUCCEEDED",
        "reason": "done",
        "nodes_before": 4,
        "nodes_after": 4,
        "logs": LogLoss(1000),
    }
    return Facts(**{**known, **changes})


def entry(time: float, node: str | None, rank: int | None, reason: str, event: str = "detected") -> Entry:
    return Entry(time, 1, event, node, rank, reason)


def test_a_case_as_it_should_be() -> None:
    verdict = judge(facts())
    assert verdict.good, verdict.problems
    assert (verdict.detected_in, verdict.recovered_in, verdict.steps_lost, verdict.restarts) == (1.5, 40.0, 3, 1)
    assert (verdict.named, verdict.losses, verdict.reason) == ("n1 rank 1", "equal", "worker_killed")


OTHER = {**BASE, 20: (BASE[20][0] + 1e-9, BASE[20][1])}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("problem", "changes"),
    [
        ("ended FAILED (gave_up)", {"state": "FAILED", "reason": "gave_up"}),
        ("nothing was started again", {"attempts": 1}),
        ("never told", {"journal": []}),
        ("never told", {"journal": [entry(900.0, "n1", 1, "worker_killed")]}),
        ("never told", {"journal": [entry(1001.0, "n1", 1, "", "unreachable")]}),
        ("detected after 16.0 s, not within 15 s", {"journal": [entry(1016.0, "n1", 1, "worker_killed")]}),
        ("n2 rank 1 was named, not n1 rank 1", {"journal": [entry(1001.0, "n2", 1, "worker_killed")]}),
        ("n1 rank 3 was named, not n1 rank 1", {"journal": [entry(1001.0, "n1", 3, "worker_killed")]}),
        ("the reason given is hung", {"journal": [entry(1001.0, "n1", 1, "hung")]}),
        ("losses differ", {"base": OTHER}),
        ("steps [16] are in no metrics file", {"seen": seen(range(17, 25))}),
        ("9 steps were made again", {"seen": seen(range(7, 25))}),
        ("12 lost, 0 doubled", {"logs": LogLoss(1000, lost=12)}),
        ("0 lost, 7 doubled", {"logs": LogLoss(1000, doubled=7)}),
        ("2 processes of the run are left on n3", {"left": {"n3": 2, "n4": 0}}),
        ("supervisor is still at work", {"supervisor_left": True}),
        ("run store: page 7 is torn", {"store": "page 7 is torn"}),
        ("went on with 3 of 4 nodes", {"nodes_after": 3}),
        ("should have gone on with fewer nodes", {"smaller": True}),
    ],
)
def test_what_is_not_as_it_should_be(problem: str, changes: dict[str, Any]) -> None:
    verdict = judge(facts(**changes))
    assert not verdict.good
    assert [text for text in verdict.problems if problem in text], verdict.problems


def test_a_smaller_layout_is_compared_with_a_tolerance() -> None:
    near = {step: (pair[0] * (1 + 1e-5), pair[1]) for step, pair in BASE.items()}  # type: ignore[operator]
    gone = {"fault": FAULTS["node_gone_no_spare"], "journal": [entry(1009.0, "n1", None, "node_lost")], "base": near}
    verdict = judge(facts(**gone, smaller=True, nodes_after=2))
    assert verdict.good and verdict.losses == "close", verdict.problems
    assert not judge(facts(**gone)).good, "the same layout has to give the same bits"
    far = {step: (pair[0] * 1.01, pair[1]) for step, pair in BASE.items()}  # type: ignore[operator]
    assert not judge(facts(**{**gone, "base": far}, smaller=True, nodes_after=2)).good


def test_what_should_be_ridden_out_is_not_started_again() -> None:
    one = Seen(losses={1: dict(BASE)}, first_seen={1: {step: 900.0 + step for step in BASE}})
    quiet = {"fault": FAULTS["sshd_kill"], "seen": one, "attempts": 1, "journal": []}
    assert judge(facts(**quiet)).good
    again = judge(facts(fault=FAULTS["sshd_kill"]))
    assert "started again 1 times" in again.problems[0]
    assert judge(facts(**{**quiet, "fault": FAULTS["link_flap"]})).good, "either is right"


def test_a_slow_node_has_to_be_found() -> None:
    one = Seen(losses={1: dict(BASE)}, first_seen={1: {step: 900.0 + step for step in BASE}})
    slow = {"fault": FAULTS["slow_node"], "seen": one, "attempts": 1, "journal": []}
    found = judge(facts(**slow, straggler="n1"))
    assert found.good and found.named == "n1", found.problems
    assert "show n2 as the slow one, not n1" in judge(facts(**slow, straggler="n2")).problems[0]
    assert "show nobody" in judge(facts(**slow)).problems[0]


def test_a_hang_may_take_its_timeout_longer() -> None:
    hang = {"fault": FAULTS["worker_stop"]}
    assert judge(facts(**hang, journal=[entry(1019.0, "n1", 1, "hung")])).good
    assert not judge(facts(**hang, journal=[entry(1021.0, "n1", 1, "hung")])).good


def test_losses_that_are_not_finite_are_compared_too() -> None:
    nothing = {**BASE, 3: (None, 1.0)}
    assert compare_losses(nothing, nothing, 24) == ("equal", 0.0)
    assert compare_losses(nothing, BASE, 24)[0] == "different"


def test_log_lines_are_counted_by_the_byte() -> None:
    written = {"n0/0": ["a", "bb", "bb", ""], "n1/1": ["x"]}
    assert compare(written, written) == LogLoss(11, 0, 0)
    assert compare({"n0/0": ["a", "bb", ""]}, written) == LogLoss(11, 5, 0)
    assert compare({**written, "n1/1": ["x", "x"]}, written) == LogLoss(11, 0, 2)


def test_shown_lines_are_read_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "shown"
    path.write_bytes("n0/0 | a | b\nn0/0 | \nn1/1 | \udc80ü\n".encode("utf-8", "surrogateescape"))
    assert read_shown(path) == {"n0/0": ["a | b", ""], "n1/1": ["\udc80ü"]}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The quick start on four of five nodes."""
    nodes = "".join(f"  - {{name: n{n}, address: 192.0.2.{n}}}\n" for n in range(1, 6))
    (tmp_path / "bed.yaml").write_text(f"name: bed\nbackend: ssh\ndevice: CPU\nnodes:\n{nodes}")
    return tmp_path / "bed.yaml"


def four(job: Path, *more: str) -> tuple[str, ...]:
    return (f"cluster={job}", "nodes=4", "devices_per_node=1", *more)


def test_a_job_is_rehearsed_short_supervised_and_with_copies(job: Path) -> None:
    rehearsed = rehearse_job(QUICKSTART, four(job, "restart.hang_timeout=30m", "restart.max=9"), steps=24, every=4)
    assert (rehearsed.spares, rehearsed.hang_timeout, rehearsed.name) == (1, 60.0, "quickstart-drill")
    made = load_job(QUICKSTART, rehearsed.of(FAULTS["port_stolen"], 23456)).job
    assert (made.name, made.restart.max, made.restart.spares, made.master_port) == ("quickstart-drill", 9, 1, 23456)
    assert (made.config.total_steps, made.train.checkpoint.every, made.train.checkpoint.copies) == (24, 4, 2)  # type: ignore[union-attr]
    assert load_job(QUICKSTART, rehearsed.of(FAULTS["node_gone_no_spare"], 1)).job.restart.spares == 0
    assert load_job(QUICKSTART, rehearsed.of(None, 1)).job.restart.max == 0
    assert [rehearsed.smaller(FAULTS[name]) for name in ("node_gone", "node_gone_no_spare", "worker_kill")] == [
        False, True, False,
    ]  # fmt: skip
    assert not any(rehearsed.impossible(fault) for fault in FAULTS.values())


def test_a_slow_node_is_watched_longer_where_ranks_tell_rarely(job: Path) -> None:
    job.write_text(job.read_text().replace("CPU", "Ascend"))
    trainer = Path(__file__).parents[2] / "models" / "trainer.py"
    assert f'"Ascend": {TIMED_EVERY}}}' in trainer.read_text()
    slow = FAULTS["slow_node"]
    assert "--steps 66" in rehearse_job(QUICKSTART, four(job), steps=24, every=4).impossible(slow)
    assert not rehearse_job(QUICKSTART, four(job), steps=66, every=4).impossible(slow)
    assert not rehearse_job(QUICKSTART, four(job), steps=24, every=4).impossible(FAULTS["worker_kill"])


def test_one_machine_cannot_lose_a_node() -> None:
    rehearsed = rehearse_job(QUICKSTART, (), steps=16, every=4)
    impossible = [name for name, fault in FAULTS.items() if rehearsed.impossible(fault)]
    assert impossible == ["link_down", "link_flap", "disk_full", "node_gone", "node_gone_no_spare"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", "8", "--every", "4"], "no room for a fault"),
        (["--fault", "nonsense"], "no fault 'nonsense'"),
        (["--set", "train.nonsense=1"], "nonsense"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(OstrainError) as caught:
        CliRunner().invoke(drill, ["quickstart", *words], catch_exceptions=False, standalone_mode=False)
    assert caught.value.exit_code == 2
    assert told in str(caught.value)


def test_a_job_that_trains_nothing_is_refused() -> None:
    with pytest.raises(OstrainError, match="trains and writes checkpoints"):
        rehearse_job(Path("os12_sample_51f"), (), steps=16, every=4)
    with pytest.raises(SpecError):
        rehearse_job(QUICKSTART, ("train.batch_size=0",), steps=16, every=4)


def test_a_cluster_is_not_disturbed_unasked(job: Path) -> None:
    words = ["quickstart", *(word for one in four(job) for word in ("--set", one))]
    with pytest.raises(OstrainError, match="nobody is here to confirm") as caught:
        CliRunner().invoke(drill, words, catch_exceptions=False, standalone_mode=False)
    assert "--yes" in caught.value.next_step


def test_a_run_is_no_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    store = Store()
    made = store.add(plan(nodes=1), "", "")
    store.close()
    with pytest.raises(OstrainError, match="is a run"):
        CliRunner().invoke(drill, [made.run_id], catch_exceptions=False, standalone_mode=False)


class Recorder:
    """An injector that only writes down what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def record(node: Any, run_id: str, *arguments: Any, **more: Any) -> float:
            assert run_id == "run"
            self.calls.append((name, node.name, *arguments, *more.items()))
            return FAULT_TIME

        return record


def scene(launch: LaunchPlan, seed: int) -> Scene:
    statuses = {
        node.name: {
            "agent": {"alive": True, "pid": 100 + number},
            "workers": [{"rank": number, "pid": 200 + number, "state": "running"}],
        }
        for number, node in enumerate(launch.nodes)
    }
    nothing = lambda: None  # noqa: E731
    return Scene("run", launch, random.Random(seed), Recorder(), statuses, nothing, nothing, lambda seconds: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_says_whom_it_hits_and_chooses_by_its_seed(name: str) -> None:
    launch = replace(plan(nodes=4), master_port=25000)
    hit = set()
    for seed in range(12):
        one, same = scene(launch, seed), scene(launch, seed)
        done = FAULTS[name].inject(one)
        assert FAULTS[name].inject(same).told == done.told
        assert one.injector.calls == same.injector.calls and one.injector.calls  # type: ignore[attr-defined]
        assert done.node in [node.name for node in launch.nodes]
        assert (done.rank is not None) == (FAULTS[name].expect.named == "rank")
        assert one.injector.calls[0][1] == done.node  # type: ignore[attr-defined]
        hit.add(done.node)
    assert len(hit) > 1, "it does not always hit the same node"


def test_all_faults_unless_some_are_named() -> None:
    assert chosen_faults(()) == list(FAULTS.values())
    assert [fault.name for fault in chosen_faults(("slow_node", "agent_kill", "slow_node"))] == [
        "slow_node", "agent_kill",
    ]  # fmt: skip


def test_what_cannot_be_rehearsed_here_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed = rehearse_job(QUICKSTART, (), steps=16, every=4)
    ground: Any = type("Ground", (), {"rehearsed": rehearsed, "say": staticmethod(lambda text: None)})
    told: list[Verdict] = []
    rehearsal = Rehearsal(ground, [FAULTS["node_gone"]], [1, 2], told.append)
    rehearsal.run()
    assert [one.cannot for one in told] == ["one node and no spare: nothing would be left to go on with"] * 2
    assert all(one.good for one in told)


def test_the_table_tells_everything(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = judge(facts()), judge(facts(logs=LogLoss(10, 3, 0)))
    cannot = Verdict("node_gone", cannot="nobody can switch a node off from an account on it")
    text = summary([good, bad, cannot])
    assert "1 of 2 cases as they should be" in text
    assert "1 could not be rehearsed here" in text
    assert "NOT OK" in text and "1.5 s" in text and "3/0" in text
    assert "3 lost, 0 doubled" in line(bad)
    assert json.loads(json.dumps(good.as_dict()))["good"] is True


def test_the_list_of_faults() -> None:
    done = CliRunner().invoke(drill, ["--list"], standalone_mode=False)
    assert [text.split()[0] for text in done.output.splitlines()] == list(FAULTS)


@pytest.fixture
def no_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line without any run: cases are good with seed 1 and bad with all others."""

    def rehearse(ground: Any, fault: Any, seed: int, base: Any) -> Verdict:
        return replace(judge(facts()), fault=fault.name, seed=seed, problems=() if seed == 1 else ("it is not",))

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("ostrain.drill.rehearsal.undisturbed", lambda ground: BASE)
    monkeypatch.setattr("ostrain.drill.rehearsal.rehearse", rehearse)


@pytest.mark.usefixtures("no_runs")
@pytest.mark.parametrize(("seeds", "code"), [("1", 0), ("2", 1)])
def test_the_exit_code_tells_whether_all_is_as_it_should_be(seeds: str, code: int) -> None:
    words = ["quickstart", "--fault", "worker_kill", "--fault", "node_gone", "--seeds", seeds]
    done = CliRunner().invoke(drill, words, standalone_mode=False, catch_exceptions=False)
    assert done.return_value == code
    told = CliRunner().invoke(drill, [*words, "--json"], standalone_mode=False, catch_exceptions=False)
    assert told.return_value == code
    verdicts = json.loads(told.stdout)
    assert [one["fault"] for one in verdicts] == ["worker_kill"] * int(seeds) + ["node_gone"] * int(seeds)
    assert verdicts[-1]["cannot"], "one machine has no node to lose"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OstrainError("it does not start")])
def test_whatever_happens_what_was_broken_is_mended_and_what_was_started_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    done: list[str] = []

    def submit(self: Case) -> None:
        injector: Any = type("Mender", (), {"mend": lambda self: done.append("mended") or []})()
        self._injector, self.run_id = injector, "run-1"
        self.commands.call = lambda *words, check=True: done.append(" ".join(words[:2])) or ""  # type: ignore[method-assign, func-returns-value]
        raise error

    monkeypatch.setattr(Case, "submit", submit)
    rehearsed = rehearse_job(QUICKSTART, (), steps=16, every=4)
    nothing: Any = None
    ground = Ground(nothing, rehearsed, nothing, nothing, tmp_path, lambda text: None)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            rehearse(ground, FAULTS["worker_kill"], 1, BASE)
    else:
        assert rehearse(ground, FAULTS["worker_kill"], 1, BASE).problems == ("it does not start",)
    assert done == ["mended", "cancel run-1", "rm --yes"]
