"""Speaks to the agent of one node: installs the agent file, calls its verbs, turns its errors into NodeError.

The inspector is spoken to in the same way: both are one file each that is sent under the hash of its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from cluster.backend import NodeError
from cluster.bundle import AGENT
from cluster.session import LARGEST, LEAST_PYTHON, VERBS, Ended, Session
from cluster.transport import Input, Result, Stream, Transport

PREFLIGHT = 3
UNREACHABLE = 4

# Runs under whatever Python there is, to find out which; argv: root, name of the agent file.
_LOOK = (
    "import json,os,sys;r=os.path.abspath(os.path.expanduser(sys.argv[1]));p=os.path.join(r,'bin',sys.argv[2]);"
    "print(json.dumps({'root':r,'agent':p,'present':os.path.exists(p),'python':list(sys.version_info[:3])}))"
)
# argv: path of the agent file, its SHA-256. The source comes on standard input.
_INSTALL = (
    "import hashlib,os,sys,tempfile;p,h=sys.argv[1:];d=sys.stdin.buffer.read();"
    "sys.exit('damaged') if hashlib.sha256(d).hexdigest()!=h else None;"
    "b=os.path.dirname(p);os.makedirs(b,exist_ok=True);f,t=tempfile.mkstemp(dir=b);"
    "os.write(f,d);os.fsync(f);os.close(f);os.chmod(t,0o644);os.replace(t,p)"
)


class AgentClient:
    """The agent of one node, over any transport. The agent file is looked for once and sent when it is missing.

    program: another such file to speak to (``cluster/inspector.py``).
    """

    def __init__(self, transport: Transport, python: str, root: str, program: Path = AGENT) -> None:
        self.transport = transport
        self.node = transport.node
        self.program = program
        self._python = python
        self._root = root
        self._source = program.read_bytes()
        self._digest = hashlib.sha256(self._source).hexdigest()
        self._lock = threading.Lock()
        self._found: tuple[str, str] | None = None
        name = f"{program.stem}-{self._digest[:16]}.py"
        self._name = name
        # Only the agent serves, and only where starting a process costs a round trip.
        served = program == AGENT and getattr(transport, "sessions", False)
        self._session = Session(transport, python, root, name, self._digest, self._source) if served else None

    def beside(self, program: Path) -> AgentClient:
        """A client of another program on the same node, over the same connection."""
        return AgentClient(self.transport, self._python, self._root, program)

    def root(self, timeout: float) -> str:
        """The absolute path of the node's root."""
        return self._install(timeout)[0]

    def file(self, timeout: float) -> str:
        """Where the program lies on the node."""
        return self._install(timeout)[1]

    def run_dir(self, run_id: str, timeout: float) -> str:
        return f"{self.root(timeout)}/runs/{run_id}/{self.node}"

    def _install(self, timeout: float) -> tuple[str, str]:
        """Root and agent path on the node."""
        with self._lock:
            if self._found is None:
                self._found = self._look(timeout)
            return self._found

    def _look(self, timeout: float) -> tuple[str, str]:
        if self._session is not None:
            try:
                with self._session.lock:
                    seen = self._session.open(timeout)
                return str(seen["root"]), str(seen["agent"])
            except Ended:  # the long way tells why
                self._session = None
        result = self.transport.run([self._python, "-c", _LOOK, self._root, self._name], timeout=timeout)
        self._check_python(result)
        try:
            seen = json.loads(last_line(result.stdout))
        except ValueError:
            raise self._protocol("an answer that is no JSON", result) from None
        if tuple(seen["python"]) < LEAST_PYTHON:
            version = ".".join(map(str, seen["python"]))
            raise NodeError(
                "python_missing",
                f"{self._python} is Python {version}; 3.8 or newer is needed",
                node=self.node,
                next_step="name another `python` in the inventory",
                exit_code=PREFLIGHT,
            )
        if not seen["present"]:
            argv = [self._python, "-c", _INSTALL, seen["agent"], self._digest]
            result = self.transport.run(argv, self._source, timeout=timeout)
            if result.returncode != 0:
                raise self._not_installed(seen["root"], result)
        return seen["root"], seen["agent"]

    def _check_python(self, result: Result) -> None:
        if result.returncode in (126, 127):
            raise NodeError(
                "python_missing" if result.returncode == 127 else "permission",
                f"{self._python} cannot be run on the node",
                node=self.node,
                why=_text(result.stderr),
                next_step="install Python 3.8 or newer there, or name another `python` in the inventory",
                exit_code=PREFLIGHT,
            )
        if result.returncode != 0:
            raise self._protocol(f"exit {result.returncode}", result)

    def _not_installed(self, root: str, result: Result) -> NodeError:
        why = _text(result.stderr).splitlines()[-1:]
        kinds = {"No space": "disk_full", "quota": "disk_full", "ermission": "permission", "Read-only": "permission"}
        kind = next((kind for word, kind in kinds.items() if why and word in why[0]), "protocol")
        next_step = "free space on the node" if kind == "disk_full" else "name another `root` in the inventory"
        what = f"the {self.program.stem} cannot be written to {root}"
        return NodeError(kind, what, node=self.node, why="".join(why), next_step=next_step, exit_code=PREFLIGHT)

    def _protocol(self, what: str, result: Result) -> NodeError:
        why = _text(result.stderr) or _text(result.stdout) or "it printed nothing"
        return NodeError("protocol", f"the node gave {what}", node=self.node, why=why[-2000:])

    def call(self, verb: str, *arguments: str, input: Input | dict[str, Any] = b"", timeout: float) -> dict[str, Any]:
        """The JSON answer of a verb; its error as NodeError."""
        data = json.dumps(input).encode() if isinstance(input, dict) else input
        answer = self._in_session(verb, arguments, data, timeout)
        if answer is not None:
            if "error" in answer:
                raise self.as_error(answer["error"])
            return answer
        result = self._run(verb, arguments, data, timeout)
        try:
            answer = json.loads(last_line(result.stdout))
        except ValueError:
            self._check_python(result)
            raise self._protocol("an answer that is no JSON", result) from None
        if not isinstance(answer, dict):
            raise self._protocol("an answer that is no JSON object", result)
        if "error" in answer:
            raise self.as_error(answer["error"])
        return answer

    def _in_session(self, verb: str, arguments: tuple[str, ...], data: Input, timeout: float) -> dict[str, Any] | None:
        """The answer where a session can give it; None: ask in the ordinary way."""
        if verb not in VERBS or self._session is None:
            return None
        self._install(timeout)
        session, small = self._session, _small(data)
        if session is None or small is None or not session.lock.acquire(blocking=False):
            return None
        try:
            if not session.usable:
                session.open(timeout)
            return session.call(verb, arguments, small, timeout)
        except Ended:
            return None
        finally:
            session.lock.release()

    def _run(self, verb: str, arguments: tuple[str, ...], data: Input, timeout: float) -> Result:
        _, agent = self._install(timeout)
        result = self.transport.run([self._python, agent, verb, *arguments], data, timeout=timeout)
        if result.returncode == 2 and b"can't open file" in result.stderr:  # somebody tidied up: send it again
            with self._lock:
                self._found = None
            _, agent = self._install(timeout)
            if not isinstance(data, bytes):
                data.seek(0)
            result = self.transport.run([self._python, agent, verb, *arguments], data, timeout=timeout)
        return result

    def as_error(self, info: dict[str, str]) -> NodeError:
        """A structured error of the agent."""
        why, next_step = info.get("why", ""), info.get("next", "")
        return NodeError(info["kind"], info["what"], node=self.node, why=why, next_step=next_step, exit_code=PREFLIGHT)

    def stream(self, verb: str, *arguments: str, request: dict[str, Any], timeout: float) -> Stream:
        """Start a verb that streams; ``request`` goes to it as one line."""
        _, agent = self._install(timeout)
        line = json.dumps(request).encode() + b"\n"
        return self.transport.stream([self._python, agent, verb, *arguments], line)

    def run_program(self, source: bytes, *arguments: str, timeout: float) -> Result:
        """Run a Python program, given as its source, on the node."""
        return self.transport.run([self._python, "-", *arguments], source, timeout=timeout)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self.transport.close()


def _small(data: Input) -> bytes | None:
    """Input that goes through a session; a file is left at its beginning."""
    if isinstance(data, bytes):
        return data if len(data) <= LARGEST else None
    size = data.seek(0, os.SEEK_END)
    data.seek(0)
    content = data.read() if size <= LARGEST else None
    data.seek(0)
    return content


def last_line(output: bytes) -> bytes:
    """The answer; a login shell's start-up files may have printed something before it."""
    return output.rstrip().rpartition(b"\n")[2]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()
