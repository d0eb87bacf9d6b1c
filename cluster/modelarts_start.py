#!/usr/bin/env python3
"""What runs in every container of a ModelArts job: waits for the others, starts the node agent, hands its files over.

Standard library only, Python 3.8 or newer. docs/modelarts.md is its contract:

    python -m cluster.modelarts_start CODE_FOLDER [--ostrain_out=FOLDER] [--ostrain_restore=FOLDER]

From the platform: VC_WORKER_HOSTS (names of all workers, the first is the master), VC_TASK_INDEX (this one's number),
MA_NUM_HOSTS or VC_WORKER_NUM, MA_NUM_GPUS (devices of a node, NPUs too), MA_VJ_NAME. From the job: OSTRAIN_ATTEMPT,
OSTRAIN_OUTPUT, OSTRAIN_RESTORE, OSTRAIN_SEALED_*. Exit code: 0 when the attempt succeeded, that of the first fault's
worker when one failed, 143 after a SIGTERM, else 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from cluster.modelarts_mirror import GROWING, Mirror, copy_whole, restore
from cluster.modelarts_place import (
    StartFailed,
    check_size,
    derived_port,
    own_number,
    unseal,
    wait_for_all,
    whole_number,
    worker_hosts,
)

if TYPE_CHECKING:  # only annotations use these, and Python 3.8 could not evaluate them
    from types import FrameType, ModuleType

    Json = dict[str, Any]

FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
LAST_TRIES = 120.0  # seconds for handing over the last files where that fails
STOP_GRACE = 8.0  # seconds; the platform kills a container some time after its SIGTERM


class Terminated(Exception):
    """The platform asked this container to end before the attempt began in it."""


def talk(text: str) -> None:
    sys.stdout.write("{} ostrain: {}\n".format(time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()), text))
    sys.stdout.flush()


class Container:
    """One container's part of an attempt."""

    def __init__(self, code: str, channels: dict[str, str], env: dict[str, str]) -> None:
        self.code, self.env = code, env
        with open(os.path.join(code, "start.json"), encoding="utf-8") as file:
            self.settings: Json = json.load(file)
        self.attempt = whole_number(env, "OSTRAIN_ATTEMPT") or 1
        self.number = 0
        self.output = channels.get("ostrain_out") or env.get("ostrain_out") or env.get("OSTRAIN_OUTPUT") or ""
        self.restored = (
            channels.get("ostrain_restore") or env.get("ostrain_restore") or env.get("OSTRAIN_RESTORE") or ""
        )
        self.phase = "starting"
        self.status: Json | None = None
        self.terminated = self.begun = False
        self.fence = threading.Lock()
        self.mirror: Mirror | None = None

    @property
    def node(self) -> Json:
        return dict(self.settings["nodes"][self.number])

    @property
    def root(self) -> str:
        return os.path.abspath(os.path.expanduser(str(self.settings["root"])))

    @property
    def agent(self) -> str:
        with open(os.path.join(self.code, "agent.py"), "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        return os.path.join(self.root, "bin", f"agent-{digest[:16]}.py")

    @property
    def run_dir(self) -> str:
        return os.path.join(self.root, "runs", self.settings["run_id"], self.node["name"])

    def tell(self, phase: str) -> None:
        """Say where this container is, here and in what it hands over."""
        if phase != self.phase:
            talk(phase)
        self.phase = phase
        self.hand_status()

    def hand_status(self) -> None:
        """``status.json``: the agent's status object, and how long each file is by now that a reader may want whole."""
        if not self.output:
            return
        folder = os.path.join(self.output, self.node["name"])
        mirror = self.mirror
        sizes = {} if mirror is None else {name: size for name, size in mirror.sizes.items() if name.endswith(GROWING)}
        record = {
            "attempt": self.attempt,
            "phase": self.phase,
            "time": time.time(),
            "status": self.status,
            "files": sizes,
        }
        with self.fence:
            try:
                os.makedirs(folder, exist_ok=True)
                temporary = os.path.join(folder, ".tmp-status.json")
                with open(temporary, "w", encoding="utf-8") as file:
                    json.dump(record, file)
                os.replace(temporary, os.path.join(folder, "status.json"))
            except OSError as error:
                talk(f"cannot hand over status.json: {error}")

    def call(self, verb: str, *arguments: str, request: Any = None, archive: str = "") -> Json:
        """A verb of the agent. StartFailed with the agent's words."""
        command = [sys.executable, self.agent, verb, *arguments]
        data = json.dumps(request or {}).encode()
        if archive:
            with open(archive, "rb") as file:
                done = subprocess.run(command, stdin=file, stdout=subprocess.PIPE, timeout=1800, check=False)
        else:
            done = subprocess.run(command, input=data, stdout=subprocess.PIPE, timeout=120, check=False)
        try:
            answer: Json = json.loads(done.stdout.decode("utf-8", "replace"))
        except ValueError:
            raise StartFailed("the agent gave no answer to " + verb, f"exit code {done.returncode}") from None
        if "error" in answer:
            info = answer["error"]
            raise StartFailed(str(info["what"]), str(info["why"]), str(info["next"]))
        return answer

    def prepare(self) -> None:
        """Agent, bundle, files and plan in this container, as on any node."""
        os.makedirs(os.path.dirname(self.agent), exist_ok=True)
        copy_whole(os.path.join(self.code, "agent.py"), self.agent)
        wanted = [("bundles", self.settings["bundle"])]
        wanted += [("files", digest) for digest in self.settings["links"].values()]
        for kind, digest in wanted:
            if not os.path.isdir(os.path.join(self.root, kind, digest)):
                self.call("unpack", kind, digest, archive=os.path.join(self.code, f"{kind}-{digest}.tar.gz"))
        request = {"run_id": self.settings["run_id"], "node": self.node["name"], "bundle": self.settings["bundle"]}
        self.call(
            "stage", self.run_dir, request={**request, "files": self.node["files"], "links": self.settings["links"]}
        )

    def start(self, master: str) -> None:
        os.environ["OSTRAIN_NODE_RANK"], os.environ["OSTRAIN_MASTER_ADDRESS"] = str(self.number), master
        for name in [name for name in os.environ if name.startswith("OSTRAIN_SEALED_")]:
            del os.environ[name]
        os.environ.pop("RANK_TABLE_FILE", None)  # the platform's: HCCL would read it instead of negotiating
        port = int(self.settings["master_port"]) or derived_port(self.settings["run_id"], self.attempt)
        request = {"run_id": self.settings["run_id"], "node": self.node["name"], "attempt": self.attempt}
        request.update(command=self.node["command"], ranks=self.node["ranks"], steps=self.settings["steps"])
        request.update(master_port=port, grace=5.0, secrets=unseal(self.code, self.env))
        request.update(node_rank=self.number, master_address=master)
        self.call("start", self.run_dir, request=request)
        self.tell("running")

    def follow(self, agent: ModuleType) -> None:
        """Hand over until the attempt has ended. Checkpoints have a thread of their own: logs do not wait for them."""
        out = os.path.join(self.output, self.node["name"], "run")
        self.mirror = Mirror(self.run_dir, out, others=True)
        large = Mirror(self.run_dir, out, checkpoints=True)
        ended, every = threading.Event(), float(self.settings["sync"])
        thread = threading.Thread(target=lambda: self.hand_checkpoints(large, ended, every), daemon=True)
        thread.start()
        stopped = False
        while True:
            status = agent.status(self.run_dir)
            if status["state"] in FINAL:
                break
            self.status = status
            self.hand(self.mirror)
            self.hand_status()
            if self.terminated and not stopped:
                stopped = True
                self.tell("asked to end")
                self.call("stop", self.run_dir, request={"grace": STOP_GRACE, "reason": "cancelled"})
            else:
                self.pause(every, agent)
        ended.set()
        thread.join()
        self.hand_last(large)
        self.status, self.phase = status, "ended"
        self.hand_status()

    def hand(self, mirror: Mirror) -> bool:
        if not self.output:
            return True
        before = mirror.problem
        done = mirror.one_pass()
        if mirror.problem and mirror.problem != before:
            talk("cannot hand over " + mirror.problem)
        return done

    def hand_checkpoints(self, large: Mirror, ended: threading.Event, every: float) -> None:
        while not ended.wait(every):
            self.hand(large)

    def hand_last(self, large: Mirror) -> None:
        """Everything, for the last time; the final status goes behind it."""
        deadline = time.monotonic() + LAST_TRIES
        while self.mirror is not None and not all([self.hand(self.mirror), self.hand(large)]):
            if time.monotonic() > deadline:
                talk("gave up handing over: " + (self.mirror.problem or large.problem))
                return
            time.sleep(1.0)

    def pause(self, seconds: float, agent: ModuleType) -> None:
        """Wait, but no longer than the attempt lives."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.terminated:
            time.sleep(min(0.2, seconds))
            state = agent.read_json(os.path.join(self.run_dir, "agent", "state.json")) or {}
            if state.get("state") in FINAL:
                return

    def failed(self, error: StartFailed, state: str = "FAILED", reason: str = "start_failed") -> None:
        """An attempt that never began, in the words of docs/run-directory.md."""
        told = {"what": error.what, "where": "", "why": error.why, "next": error.next_step}
        fault: Json = {"rank": None, "pid": None, "exit_code": None, "signal": None, "time": time.time()}
        fault.update(reason=reason, log="", tail=[], message=told)
        self.status = {
            "node": self.node["name"], "time": time.time(), "attempt": self.attempt, "state": state,
            "reason": reason, "agent": {"alive": False, "pid": None}, "fault": fault, "workers": [],
            "progress": None, "checkpoints": [], "heartbeat": {},
        }  # fmt: skip
        talk("no start: {}{}".format(error.what, f" ({error.why})" if error.why else ""))
        self.hand_status()

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self.on_term)
        try:
            nodes = self.settings["nodes"]
            self.number = own_number(self.env, len(nodes))
            names = worker_hosts(self.env, len(nodes))
            check_size(self.env, nodes, self.number)
            self.tell("container is up")
            place = os.path.join(self.restored or self.output, self.node["name"], "run")
            if restore(place, self.run_dir, self.attempt):
                self.tell("files of an earlier attempt are back")
            self.prepare()
            agent = load_agent(self.agent)
            master = wait_for_all(names, float(self.settings["wait"]), self.tell)
            self.begun = True
            self.start(master)
        except StartFailed as error:
            self.failed(error)
            return 1
        except Terminated:
            self.failed(StartFailed("the platform ended the container before the start"), "CANCELLED", "cancelled")
            return 143
        except (OSError, subprocess.SubprocessError) as error:
            self.failed(StartFailed("the container could not be prepared", str(error)))
            return 1
        self.follow(agent)
        return self.exit_code()

    def on_term(self, _number: int, _frame: FrameType | None) -> None:
        self.terminated = True
        if not self.begun:
            raise Terminated

    def exit_code(self) -> int:
        status = self.status or {}
        if status.get("state") == "SUCCEEDED":
            return 0
        if status.get("state") == "CANCELLED":
            return 143
        code = (status.get("fault") or {}).get("exit_code")
        return code if isinstance(code, int) and 0 < code < 256 else 1


def load_agent(path: str) -> ModuleType:
    """The agent file as a module: its status needs no process of its own."""
    spec = importlib.util.spec_from_file_location("ostrain_agent", path)
    if spec is None or spec.loader is None:
        raise StartFailed("the agent cannot be loaded", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ostrain_agent"] = module
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> int:
    if not arguments or not os.path.isfile(os.path.join(arguments[0], "start.json")):
        sys.stderr.write(
            "usage: python -m cluster.modelarts_start CODE_FOLDER [--ostrain_out=…] [--ostrain_restore=…]\n"
        )
        return 2
    pairs = [one[2:].partition("=") for one in arguments[1:] if one.startswith("--") and "=" in one]
    channels = {name: value for name, _, value in pairs}
    with contextlib.suppress(ValueError):  # not in the main thread: only in tests
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return Container(os.path.abspath(arguments[0]), channels, dict(os.environ)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
