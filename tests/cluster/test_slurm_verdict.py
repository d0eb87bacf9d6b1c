"""What files and Slurm together say of a run; what Slurm's commands print, and what they must not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.backend import NodeError
from cluster.slurm import Slurm, SlurmJob
from cluster.slurm_inventory import SlurmSection
from cluster.slurm_verdict import merged, needs_slurm, retried, settling
from cluster.transport import Input, Result

RETRY = ("worker_killed", "slurm_preempted", "agent_lost")


def node(state: str, attempt: int = 1, reason: str = "", fault: str = "") -> dict[str, Any]:
    told = {"reason": fault, "time": 1.0} if fault else None
    return {"state": state, "attempt": attempt, "reason": reason or fault, "fault": told, "agent": {"alive": True}}


NEW, RUNS, DONE = node("NONE", 0, "preparing"), node("RUNNING", 1, "running"), node("SUCCEEDED", 1, "done")
KILLED, PEER = node("FAILED", 1, "", "worker_killed"), node("FAILED", 1, "peer_failed")
CONFIG = node("FAILED", 1, "", "bad_config")
TAKEN = node("FAILED", 1, "", "slurm_preempted")


def job(state: str, number: int = 7, reason: str = "", hosts: str = "n1") -> SlurmJob:
    return SlurmJob(str(number), state, reason, "", hosts)


@pytest.mark.parametrize(
    ("nodes", "jobs", "requeue", "expected"),
    [
        ([NEW, NEW], [job("PENDING", reason="Priority", hosts="")], False, ("NONE", "queued", 1)),
        ([NEW, NEW], [job("RUNNING")], False, ("NONE", "preparing", 1)),
        ([RUNS, NEW], [job("RUNNING")], False, ("RUNNING", "running", 1)),
        ([KILLED, PEER], [job("RUNNING")], False, ("FAILED", "worker_killed", 1)),
        ([KILLED, PEER], [job("RUNNING"), job("PENDING", 8)], False, ("NONE", "queued", 1)),
        ([KILLED, PEER], [job("FAILED"), job("PENDING", 8)], False, ("NONE", "queued", 1)),
        ([CONFIG, PEER], [job("FAILED"), job("PENDING", 8)], False, ("FAILED", "bad_config", 1)),
        ([TAKEN, TAKEN], [job("COMPLETING")], True, ("NONE", "queued", 1)),
        ([TAKEN, TAKEN], [job("COMPLETING")], False, ("FAILED", "slurm_preempted", 1)),
        ([RUNS, RUNS], [job("PENDING", reason="BeginTime")], True, ("NONE", "queued", 1)),
        ([DONE, RUNS], [job("RUNNING")], False, ("SUCCEEDED", "done", 1)),
        ([TAKEN, node("RUNNING", 2, "running")], [job("RUNNING")], True, ("NONE", "preparing", 2)),
    ],
)
def test_how_a_run_stands(
    nodes: list[dict[str, Any]], jobs: list[SlurmJob], requeue: bool, expected: tuple[str, str, int]
) -> None:
    told = merged({f"node-{rank}": one for rank, one in enumerate(nodes)}, jobs, 1, RETRY, requeue)
    first = told["node-0"]
    assert (first["state"], first["reason"], first["attempt"]) == expected
    assert first["scheduler"]["live"]


@pytest.mark.parametrize(
    ("nodes", "jobs", "expected"),
    [
        ([RUNS, RUNS], [job("TIMEOUT")], "slurm_timeout"),
        ([RUNS, DONE], [job("NODE_FAIL")], "slurm_node_fail"),
        ([RUNS, RUNS], [job("PREEMPTED")], "slurm_preempted"),
        ([NEW, NEW], [job("CANCELLED", hosts="")], "cancelled"),
        ([RUNS, RUNS], [job("FAILED", reason="NonZeroExitCode")], "agent_lost"),
        ([RUNS, RUNS], [job("OUT_OF_MEMORY")], "agent_lost"),
        ([RUNS, RUNS], [job("TIMEOUT"), job("CANCELLED", 8, hosts="")], "slurm_timeout"),
        ([node("FAILED", 1, "agent_lost"), KILLED], [job("NODE_FAIL")], "slurm_node_fail"),
        ([node("FAILED", 1, "agent_lost"), KILLED], [job("FAILED")], None),
        ([KILLED, PEER], [job("FAILED")], None),
        ([RUNS, RUNS], [job("RUNNING")], None),
        ([RUNS, RUNS], [job("COMPLETING")], None),
        ([RUNS, RUNS], [], None),
    ],
)
def test_the_last_word_for_nodes_that_had_none(
    nodes: list[dict[str, Any]], jobs: Sequence[SlurmJob], expected: str | None
) -> None:
    verdict = settling(nodes, jobs, 1)
    assert (verdict.reason if verdict else None) == expected
    if verdict:
        assert "Slurm" in verdict.what and verdict.attempt == 1


def test_slurm_is_asked_only_where_files_do_not_tell() -> None:
    assert not needs_slurm([DONE, DONE], 1) and needs_slurm([DONE, RUNS], 1) and needs_slurm([KILLED, PEER], 1)
    assert needs_slurm([node("CANCELLED", 1)], 2) and not needs_slurm([node("CANCELLED", 2)], 2)
    assert "worker_killed" in retried({}) and retried({"retry": ["hung"]}) == ("hung",)


class Fake:
    """A transport that answers as told."""

    node = "login"

    def __init__(self, out: str = "", err: str = "", code: int = 0) -> None:
        self.result = Result(code, out.encode(), err.encode())
        self.argv: list[str] = []

    def run(self, argv: Sequence[str], input: Input = b"", *, timeout: float) -> Result:
        self.argv = list(argv)
        return self.result

    def stream(self, argv: Sequence[str], input: bytes) -> Any:
        raise AssertionError("nothing streams")

    def close(self) -> None:
        """Nothing is open."""


def slurm(out: str = "", err: str = "", code: int = 0, **section: Any) -> Slurm:
    return Slurm(Fake(out, err, code), SlurmSection.model_validate(section))


def test_answers_are_read_as_printed() -> None:
    lines = "9|PENDING|Priority|N/A||2|(Priority)\n7|RUNNING|None|2026-01-02T03:04:05|n[1-2]|2|n[1-2]\n"
    assert slurm(lines).jobs("x") == [
        SlurmJob("7", "RUNNING", "None", "2026-01-02T03:04:05", "n[1-2]"), SlurmJob("9", "PENDING", "Priority")
    ]  # fmt: skip
    assert slurm("12;cluster\n").submit("s", [], name="n", folder="/f") == "12"
    assert slurm("12|CANCELLED by 1000\n").ended("12") == SlurmJob("12", "CANCELLED")
    assert slurm("slurm-wlm 22.05.8\n").version() == "22.05.8"
    assert slurm("", "slurm_load_jobs error: Invalid job id specified", 1).ended("12") is None
    slurm("", "scancel: error: Kill job error on job id 5: Job/step already completing or completed", 1).cancel(["5"])


@pytest.mark.parametrize(
    ("out", "err", "code", "call", "words"),
    [
        ("7|DANCING|None|N/A||1|\n", "", 0, "jobs", "printed something unknown"),
        ("7 RUNNING\n", "", 0, "jobs", "printed something unknown"),
        ("", "squeue: error: Unable to contact slurm controller (connect failure)", 1, "jobs", "does not answer"),
        ("Submitted batch job 5", "", 0, "submit", "refused the job"),
        ("", "sbatch: error: Batch job submission failed: Invalid account", 1, "submit", "refused the job"),
        ("", "allocation failure: Requested node configuration is not available", 1, "test", "would refuse"),
        ("", "env: 'sbatch': No such file or directory", 127, "version", "no program sbatch"),
    ],
)
def test_everything_else_is_told(out: str, err: str, code: int, call: str, words: str) -> None:
    client = slurm(out, err, code)
    calls = {
        "jobs": lambda: client.jobs("x"),
        "submit": lambda: client.submit("s", [], name="n", folder="/f"),
        "test": lambda: client.test("x"),
        "version": client.version,
    }
    with pytest.raises(NodeError, match=words) as caught:
        calls[call]()
    assert caught.value.exit_code == (4 if "controller" in err else 3 if code else caught.value.exit_code)


def test_programs_and_configuration_of_the_inventory_are_used() -> None:
    client = slurm("12\n", programs="/opt/slurm/bin", config="/etc/s/slurm.conf")
    client.submit("s", ["a b"], name="n", folder="/f", after="11", hold_off="n3")
    argv = client.transport.argv  # type: ignore[attr-defined]
    assert "SLURM_CONF=/etc/s/slurm.conf" in argv and "/opt/slurm/bin/sbatch" in argv
    assert argv[-2:] == ["s", "a b"] and "--dependency=afternotok:11" in argv and "--exclude=n3" in argv
