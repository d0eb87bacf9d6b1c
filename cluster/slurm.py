"""Slurm's commands: submit, ask, cancel. Every answer is parsed strictly, in formats that old versions print, too.

Formats: sbatch(1) ``--parsable``, squeue(1) ``--format``, sacct(1) ``--parsable2``, scontrol(1) ``show job``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.backend import NodeError
from cluster.client import PREFLIGHT
from cluster.slurm_inventory import SlurmSection
from cluster.transport import Result, Transport

# JOB STATE CODES of squeue(1), by what they mean to us.
WAITING = frozenset(
    ["PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT", "CONFIGURING"]
)
WORKING = frozenset(["RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"])
ENDING = frozenset(["COMPLETING", "STAGE_OUT"])
ENDED = frozenset(
    ["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"]
    + ["TIMEOUT"]
)
_JOB_ID = re.compile(r"[1-9][0-9]*\Z")
_FORMAT = "%i|%T|%r|%S|%N|%D|%R"
_TIMEOUT = 30.0


@dataclass(frozen=True)
class SlurmJob:
    """What Slurm says of a job. reason: why it waits or ended, Slurm's word; starts: expected or real, "" unknown;
    hosts: a host list such as ``n[1-2]``, "" before it runs."""

    job: str
    state: str
    reason: str = ""
    starts: str = ""
    hosts: str = ""

    @property
    def live(self) -> bool:
        return self.state not in ENDED

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def why(self) -> str:
        """Slurm's reason, where it has one worth telling."""
        return "" if self.reason in ("None", "") else self.reason


class Slurm:
    """The commands on the machine that ``transport`` reaches."""

    def __init__(self, transport: Transport, section: SlurmSection) -> None:
        self.transport = transport
        self.section = section

    def _run(self, program: str, *arguments: str, input: bytes = b"", timeout: float = _TIMEOUT) -> Result:
        """NodeError where the program is missing; its exit code is for the caller."""
        path = f"{self.section.programs}/{program}" if self.section.programs else program
        settings = [f"SLURM_CONF={self.section.config}"] if self.section.config else []
        # Options of squeue and sbatch that a user exports would change what we read.
        unset = ["-u", "SQUEUE_FORMAT", "-u", "SQUEUE_STATES", "-u", "SQUEUE_PARTITION", "-u", "SLURM_TIME_FORMAT"]
        unset += ["-u", "SBATCH_TEST_ONLY", "-u", "SBATCH_WAIT", "-u", "SBATCH_ARRAY_INX", "-u", "SBATCH_EXPORT"]
        argv = ["env", *unset, *settings, "LC_ALL=C", path, *arguments]
        result = self.transport.run(argv, input, timeout=timeout)
        if result.returncode in (126, 127) and path.encode() in result.stderr:
            raise NodeError(
                "program_missing",
                f"no program {path} on the login machine",
                node=self.transport.node,
                why=_text(result.stderr),
                next_step="say `programs` (the folder of sbatch) or `login` in the inventory's section `slurm`",
                exit_code=PREFLIGHT,
            )
        return result

    def _failed(self, what: str, result: Result, next_step: str = "") -> NodeError:
        why = _text(result.stderr) or _text(result.stdout) or f"exit {result.returncode}"
        lost = "Unable to contact slurm controller" in why or "Connection refused" in why
        if lost:
            next_step = "look whether slurmctld runs: scontrol ping"
        code = 4 if lost else PREFLIGHT
        kind = "unreachable" if lost else "protocol"
        return NodeError(kind, what, node=self.transport.node, why=why[-1500:], next_step=next_step, exit_code=code)

    def version(self) -> str:
        """Such as ``22.05.8``."""
        result = self._run("sbatch", "--version")
        match = re.search(r"\b(\d+\.\d+(?:\.\d+)?\S*)", _text(result.stdout))
        if result.returncode != 0 or match is None:
            raise self._failed("sbatch does not tell its version", result)
        return match[1]

    def test(self, script: str) -> str:
        """Slurm's own opinion on a script: when it would start. NodeError with the reason it would refuse it for."""
        result = self._run("sbatch", "--test-only", input=script.encode())
        if result.returncode != 0:
            raise self._failed(
                "Slurm would refuse this job",
                result,
                "correct the section `slurm` of the inventory, or the job's `nodes` and `devices_per_node`",
            )
        return _text(result.stderr).removeprefix("sbatch: ")

    def submit(
        self, script: str, arguments: Sequence[str], *, name: str, folder: str, after: str = "", hold_off: str = ""
    ) -> str:
        """The id of a new job. after: a job that has to fail first; without its failure this one is cancelled.

        hold_off: hosts to stay away from, as a host list.
        """
        options = [f"--job-name={name}", f"--chdir={folder}"]
        if after:
            options += [f"--dependency=afternotok:{after}", "--kill-on-invalid-dep=yes"]
        if hold_off:
            options += [f"--exclude={hold_off}"]
        result = self._run("sbatch", "--parsable", *options, script, *arguments)
        answer = _text(result.stdout).splitlines()[-1:]
        job = answer[0].split(";")[0] if answer else ""
        if result.returncode != 0 or not _JOB_ID.match(job):
            raise self._failed("Slurm refused the job", result, "correct the section `slurm` of the inventory")
        return job

    def jobs(self, name: str) -> list[SlurmJob]:
        """The jobs of that name that slurmctld still knows, oldest first: it forgets them some minutes after their
        end (MinJobAge)."""
        result = self._run("squeue", "--noheader", "--states=all", f"--name={name}", f"--format={_FORMAT}")
        if result.returncode != 0:
            raise self._failed("squeue does not answer", result)
        lines = [line for line in _text(result.stdout).splitlines() if line.strip()]
        return sorted((self._parsed(line) for line in lines), key=lambda job: int(job.job))

    def _parsed(self, line: str) -> SlurmJob:
        fields = line.strip().split("|")
        if len(fields) < 7 or not _JOB_ID.match(fields[0]):
            raise self._strange("squeue", line)
        job, state, reason, starts, hosts = (field.strip() for field in fields[:5])
        return SlurmJob(job, self._state("squeue", state, line), reason, "" if starts == "N/A" else starts, hosts)

    def _state(self, program: str, word: str, line: str) -> str:
        state = word.split()[0].rstrip("+") if word.split() else ""  # "CANCELLED by 1000"
        if state not in WAITING | WORKING | ENDING | ENDED:
            raise self._strange(program, line)
        return state

    def _strange(self, program: str, line: str) -> NodeError:
        return NodeError("protocol", f"{program} printed something unknown", node=self.transport.node, why=line[:300])

    def ended(self, job: str) -> SlurmJob | None:
        """What accounting, or else slurmctld, still knows of one job; None where neither knows it."""
        result = self._run("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobIDRaw,State", "-j", job)
        for line in _text(result.stdout).splitlines() if result.returncode == 0 else []:
            fields = line.split("|")
            if len(fields) == 2 and fields[0] == job:
                return SlurmJob(job, self._state("sacct", fields[1], line))
        result = self._run("scontrol", "show", "job", job, "--oneliner")
        text = _text(result.stdout)
        match = re.search(r"\bJobState=(\S+)", text)
        if result.returncode != 0 or match is None:
            return None
        reason = re.search(r"\bReason=(\S+)", text)
        return SlurmJob(job, self._state("scontrol", match[1], text), reason[1] if reason else "")

    def cancel(self, jobs: Sequence[str], *, signal: str = "") -> None:
        """End jobs, the last first, or send their steps a signal. Jobs that have ended are passed over."""
        if not jobs:
            return
        options = [f"--signal={signal}"] if signal else []
        ordered = sorted(jobs, key=int, reverse=True)
        result = self._run("scancel", "--quiet", *options, *ordered)
        why = _text(result.stderr)
        if result.returncode != 0 and not re.search(r"already complet|Invalid job id|not running|not valid", why):
            raise self._failed(f"job {', '.join(jobs)} cannot be cancelled", result)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()
