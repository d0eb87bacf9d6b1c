#!/usr/bin/env python3
"""The Slurm side of a run: on the login machine for a client, on the first node of an allocation for ``sbatch.sh``.

One file, standard library only, Python 3.8 or newer; it lies beside the node agent and uses its functions. All nodes of
a run share a file system, so one process looks after the directories of all of them.

    python slurm_agent.py VERB AGENT …      AGENT: the file of the node agent
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import ipaddress
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # only annotations use these, and Python 3.8 could not evaluate them
    from collections.abc import Callable, Iterator

    from cluster import agent

    Json = dict[str, Any]

LAST_WORDS = 8.0  # seconds agents have to say their last word after the end of the step
SCONTROL_TIME = 8.0  # seconds slurmctld may take to answer
# What a state of the job says of an attempt whose agent had no last word.
REASONS = {
    "TIMEOUT": ("slurm_timeout", "the job's time limit was reached"),
    "DEADLINE": ("slurm_timeout", "the job's deadline was reached"),
    "PREEMPTED": ("slurm_preempted", "a job of higher priority took the nodes"),
    "REQUEUED": ("slurm_preempted", "Slurm put the job back into the queue"),
    "PENDING": ("slurm_preempted", "Slurm put the job back into the queue"),
    "NODE_FAIL": ("slurm_node_fail", "a node of the job failed"),
    "BOOT_FAIL": ("slurm_node_fail", "a node of the job did not boot"),
    "CANCELLED": ("cancelled", "the job was cancelled in Slurm"),
    "OUT_OF_MEMORY": ("agent_lost", "the job used more memory of the node than it had asked for (OUT_OF_MEMORY)"),
}


def load_agent(path: str) -> None:
    """Make the node agent's module available as ``agent``."""
    spec = importlib.util.spec_from_file_location("agent", path)
    if spec is None or spec.loader is None:
        raise OSError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["agent"] = module
    spec.loader.exec_module(module)
    globals()["agent"] = module


def scontrol(*arguments: str) -> str:
    """What scontrol prints; nothing where it fails."""
    argv = [os.path.join(os.environ.get("OSTRAIN_SLURM", ""), "scontrol"), *arguments]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SCONTROL_TIME)
    except (OSError, subprocess.SubprocessError) as error:
        agent.talk(f"scontrol does not answer: {error}")
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


# For a client, on the login machine: one JSON object in, one out


def verb_batch(request: Json) -> Json:
    """Several calls of the agent's verbs in one process: ``calls`` [{verb, arguments, input}] -> ``answers``; with them
    ``noted``, the newest submission of the run whose first node's directory is ``first``."""
    answers = []
    for call in request["calls"]:
        count, function = agent.VERBS[call["verb"]]
        agent.read_request = lambda call=call: call.get("input") or {}  # type: ignore[misc]
        try:
            if len(call["arguments"]) != count:
                raise agent.AgentError("protocol", "{} takes {} arguments".format(call["verb"], count))
            answers.append(function(*call["arguments"]))
        except agent.AgentError as error:
            answers.append({"error": error.info})
        except OSError as error:
            answers.append({"error": agent.os_problem("{} failed".format(call["verb"]), error).info})
    return {"answers": answers, "noted": noted(request["first"])}


def verb_order(request: Json) -> Json:
    """Leave every node's request for an attempt in its run directory; secrets in a file that only the user reads."""
    for path, order in request["orders"].items():
        run = agent.RunDir(path)
        run.must_exist()
        os.makedirs(run.at("agent"), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(run.at("agent/cancel"))
        if request["secrets"]:
            agent.write_file(run.at("agent/secrets.json"), json.dumps(request["secrets"]).encode(), 0o600)
        agent.write_json(run.at("agent/request.json"), order)
    return {}


def verb_note(request: Json) -> Json:
    """Remember the jobs of the run, in the first node's directory."""
    run = agent.RunDir(request["run_dir"])
    agent.write_json(run.at("agent/slurm.json"), {"jobs": request["jobs"], "attempt": request["attempt"]})
    return {}


def noted(run_dir: str) -> Json:
    """Jobs of the newest submission, oldest first, and the attempt the first one was to begin."""
    return agent.read_json(os.path.join(run_dir, "agent/slurm.json")) or {"jobs": [], "attempt": 0}


def verb_ask(request: Json) -> Json:
    """Ask the agents to end, as ``stop`` does; who waits for them is the client."""
    asked = []
    for path in request["run_dirs"]:
        run = agent.RunDir(path)
        if os.path.isdir(path) and run.state().get("state") not in agent.FINAL:
            wish = {"time": time.time(), "reason": request["reason"], "grace": request["grace"]}
            os.makedirs(run.at("agent"), exist_ok=True)
            run.insist("agent/cancel", wish)
            asked.append(run.node)
    return {"asked": asked}


def settle(run: agent.RunDir, attempt: int, reason: str, what: str) -> Json:
    """Write the last word of an attempt whose agent is gone; one that spoke for itself keeps its word."""
    state = run.state()
    final = state.get("state") in agent.FINAL and state.get("attempt", 0) >= attempt
    if not final or (state.get("reason") == "agent_lost" and reason != "agent_lost"):
        cancel = run.cancel()
        if cancel is not None and reason != "superseded":
            reason = str(cancel.get("reason") or "cancelled")
        own = state.get("attempt") == attempt and not final and state.get("fault")
        fault: Json | None = None
        if own:
            fault, reason = state["fault"], state["fault"]["reason"]
        elif agent.cancelled_state(reason)["state"] == "FAILED" and cancel is None:
            fault = agent.describe_fault(run, attempt, reason, "agent.log", message=agent.message(what))
            with contextlib.suppress(OSError):
                fault["time"] = os.stat(run.at("agent/pulse")).st_mtime
        verdict = agent.cancelled_state(reason)
        state = {"run_id": run.run_id, "node": run.node, **state, **verdict, "attempt": attempt}
        state.update(held=True, fault=fault, ended=time.time())
        run.event(attempt, "ended", state=state["state"], reason=reason)
        run.insist("agent/state.json", state)
    report = state.get("report") or {}
    return {"state": state["state"], "killed": report.get("killed", []), "survivors": report.get("survivors", [])}


def verb_settle(request: Json) -> Json:
    """``settle`` for several nodes; ``last``: no attempt follows, secrets that were kept for one are deleted."""
    answers = {}
    for path in request["run_dirs"]:
        if not os.path.isdir(path):
            continue
        run = agent.RunDir(path)
        os.makedirs(run.at("agent"), exist_ok=True)
        answers[run.node] = settle(run, int(request["attempt"]), request["reason"], request["what"])
        if request.get("last"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(run.at("agent/secrets.json"))
    return {"nodes": answers}


class Group:
    """Follows the directories of all nodes. Paths and cursors start with the node's name."""

    def __init__(self, folder: str, nodes: list[str], request: Json) -> None:
        self.last = not request.get("until_final", True)
        self.followers = []
        for node in nodes:
            cursors = {path[len(node) + 1 :]: end for path, end in request.get("cursors", {}).items()
                       if path.startswith(node + "/")}  # fmt: skip
            own = {"cursors": cursors, "patterns": request.get("patterns", []), "until_final": not self.last}
            self.followers.append((node, agent.Follower(os.path.join(folder, node), own)))

    def look(self) -> tuple[bool, Iterator[Json]]:
        """As ``agent.Follower.round``; the client knows when the run is over."""
        return self.last, self.frames()

    def frames(self) -> Iterator[Json]:
        for node, follower in self.followers:
            for frame in follower.round()[1]:
                yield {**frame, "path": node + "/" + frame["path"]} if "path" in frame else frame


def follow(folder: str, nodes: list[str]) -> int:
    request = json.loads(sys.stdin.buffer.readline() or b"{}")
    return agent.pour(Group(folder, nodes, request).look, float(request.get("keepalive") or 0))


# For sbatch.sh and the agents, on the nodes of an allocation


def first_host() -> str:
    """The first host of the allocation, where this runs."""
    names = scontrol("show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")).split()
    return names[0] if names else socket.gethostname()


def interface_address(name: str) -> str:
    """The IPv4 address of an interface (SIOCGIFADDR of netdevice(7)). OSError where it has none."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
    return socket.inet_ntoa(answer[20:24])


def resolved(host: str) -> list[str]:
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def master_address(request: Json) -> str:
    """The address the other nodes reach the first one at: of the interface the inventory names, of its host name, or
    the one that Slurm itself uses (NodeAddr)."""
    if request.get("nodes", []) and len(request["nodes"]) == 1:
        return "127.0.0.1"
    if request.get("interface"):
        return interface_address(request["interface"])
    host = first_host()
    outer = [address for address in resolved(host) if not ipaddress.ip_address(address.split("%")[0]).is_loopback]
    if outer:
        return outer[0]
    told = re.search(r"\bNodeAddr=(\S+)", scontrol("show", "node", host))
    found = resolved(told.group(1)) if told else []
    return found[0] if found else host


def own_job() -> Json:
    job = os.environ.get("SLURM_JOB_ID", "")
    return {"scheduler": "slurm", "job": job, "restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            "hosts": os.environ.get("SLURM_JOB_NODELIST", "")}  # fmt: skip


def why() -> int:
    print(*why_ended())
    return 0


def why_ended() -> tuple[str, str]:
    """Reason and text of what Slurm is doing to this job."""
    job = os.environ.get("SLURM_JOB_ID", "")
    text = scontrol("show", "job", job, "--oneliner")
    state = re.search(r"\bJobState=(\S+)", text)
    preempted = re.search(r"\bPreemptTime=(\d\S*)", text)
    word = state.group(1) if state else "unknown"
    if preempted and word in ("RUNNING", "PENDING", "REQUEUED"):
        word = "PREEMPTED"
    reason, what = REASONS.get(word, ("agent_lost", f"the agent was asked to end (SIGTERM), and Slurm says {word}"))
    return reason, f"{what} (Slurm job {job})"


def begin(folder: str) -> int:
    """Decide on the next attempt. Prints its number, the master's address and port; nothing where none is due."""
    first = agent.RunDir(os.path.join(folder, "node-0"))
    request = agent.read_json(first.at("agent/request.json"))
    if request is None:
        agent.talk("nobody asked for a start: {} is missing".format(first.at("agent/request.json")))
        return 1
    begun = agent.read_json(first.at("agent/begun.json")) or {}
    last, asked = int(begun.get("attempt", 0)), int(request["attempt"])
    runs = [agent.RunDir(os.path.join(folder, node)) for node in request["nodes"]]
    if last >= asked:  # this job was put back into the queue, or follows one that failed
        for run in runs:
            settle(run, last, *previous_end())
        if not worth_another(runs, request):
            return 1
    attempt = max(asked, last + 1)
    problems: list[Json] = []
    address = master_address(request)
    port = agent.probe_port(address, int(request.get("master_port") or 0), problems)
    if port is None:
        agent.talk("{what}: {why}".format(**problems[0]))
        return 1
    agent.write_json(first.at("agent/begun.json"), {**own_job(), "attempt": attempt, "time": time.time()})
    first.event(attempt, "allocated", address=address, port=port, **own_job())
    print(attempt, address, port)
    return 0


def previous_end() -> tuple[str, str]:
    """What ended an attempt before this one whose agent could not say so."""
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        return "slurm_preempted", "Slurm put the job back into the queue"
    return "agent_lost", "the job before this one ended without a last word of its agent"


def worth_another(runs: list[agent.RunDir], request: Json) -> bool:
    """Whether another attempt can help, by the reasons that the nodes gave."""
    states = [run.state() for run in runs]
    if all(state.get("state") == "SUCCEEDED" for state in states):
        agent.talk("the run has succeeded; there is nothing to do")
        return False
    faults = [state["fault"] for state in states if state.get("fault")]
    words = [min(faults, key=lambda fault: float(fault["time"]))["reason"]] if faults else []
    words += [str(state.get("reason")) for state in states if state.get("state") == "CANCELLED"]
    hopeless = [word for word in words if word not in request["retry"]]
    if hopeless:
        agent.talk(f"another attempt cannot help: {hopeless[0]}")
    return not hopeless


def warn(folder: str, reason: str) -> int:
    """Have the workers end in good order before Slurm ends them."""
    request = agent.read_json(os.path.join(folder, "node-0", "agent/request.json")) or {}
    dirs = [os.path.join(folder, node) for node in request.get("nodes", [])]
    verb_ask({"run_dirs": dirs, "reason": reason, "grace": 10.0})
    return 0


def speechless(run: agent.RunDir) -> bool:
    return run.state().get("state") not in agent.FINAL


def end(folder: str, code: str) -> int:
    """After the step: see that every node has its last word; where no attempt can help, take back those that wait."""
    first = agent.RunDir(os.path.join(folder, "node-0"))
    request = agent.read_json(first.at("agent/request.json")) or {"nodes": [], "retry": []}
    begun = agent.read_json(first.at("agent/begun.json")) or {}
    runs = [agent.RunDir(os.path.join(folder, node)) for node in request["nodes"]]
    deadline = time.monotonic() + LAST_WORDS
    while any(speechless(run) for run in runs) and time.monotonic() < deadline:
        time.sleep(0.3)  # Slurm ends srun together with the agents, which have their workers to end
    if any(speechless(run) for run in runs):
        reason, what = why_ended() if code != "0" else ("agent_lost", "the step ended, but not every agent said so")
        for run in runs:
            settle(run, int(begun.get("attempt", 0)), reason, what)
    if all(run.state().get("state") == "SUCCEEDED" for run in runs):
        return 0
    if not worth_another(runs, request):
        noted = (agent.read_json(first.at("agent/slurm.json")) or {}).get("jobs", [])
        own = os.environ.get("SLURM_JOB_ID", "")
        later = [job for job in noted if job.isdigit() and own.isdigit() and int(job) > int(own)]
        if later:
            argv = [os.path.join(os.environ.get("OSTRAIN_SLURM", ""), "scancel"), "--quiet", *later]
            with contextlib.suppress(OSError, subprocess.SubprocessError):  # they see for themselves when they begin
                subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=SCONTROL_TIME)
    return 1


def expanded(ids: str) -> list[int]:
    """``0-2,5`` -> [0, 1, 2, 5]."""
    found: list[int] = []
    for part in ids.split(","):
        low, _, high = part.partition("-")
        found.extend(range(int(low), int(high or low) + 1))
    return found


def devices(count: str, resource: str) -> int:
    """Print the ids of the first ``count`` devices of this node's share of the job; nothing where Slurm says none."""
    text = scontrol("show", "job", os.environ.get("SLURM_JOB_ID", ""), "--details")
    own = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    pattern = r"^\s*Nodes=(\S+) .*?\bGRES=(\S*)"
    for hosts, shares in re.findall(pattern, text, re.MULTILINE):
        match = re.search(rf"(?:^|[,)]){re.escape(resource)}(?::[^(),]*)?\(IDX:([0-9,-]+)\)", shares)
        if match and own in scontrol("show", "hostnames", hosts).split():
            print(",".join(map(str, expanded(match.group(1))[: int(count)])))
            return 0
    return 0


CLIENT_VERBS: dict[str, Callable[[Json], Json]] = {
    "batch": verb_batch,
    "order": verb_order,
    "note": verb_note,
    "ask": verb_ask,
    "settle": verb_settle,
}
NODE_VERBS: dict[str, Callable[..., int]] = {"begin": begin, "warn": warn, "end": end, "devices": devices, "why": why}


def answer_client(verb: str) -> int:
    try:
        answer = CLIENT_VERBS[verb](json.loads(sys.stdin.buffer.read() or b"{}"))
    except agent.AgentError as error:
        answer = {"error": error.info}
    except OSError as error:
        answer = {"error": agent.os_problem(f"{verb} failed", error).info}
    except (ValueError, KeyError, TypeError) as error:
        answer = {"error": agent.AgentError("protocol", f"{verb} did not understand its request", repr(error)).info}
    print(json.dumps(answer))
    return 1 if "error" in answer else 0


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        sys.stderr.write("usage: slurm_agent.py {} AGENT …\n".format("|".join([*CLIENT_VERBS, *NODE_VERBS, "follow"])))
        return 2
    verb, path, rest = arguments[0], arguments[1], arguments[2:]
    load_agent(path)
    if verb == "follow":
        return follow(rest[0], rest[1:])
    if verb in CLIENT_VERBS:
        return answer_client(verb)
    return NODE_VERBS[verb](*rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
