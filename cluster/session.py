"""One process on a node that answers many short verbs: a submit is five of them, and starting Python costs more than
all five. It ends with its connection, or when nobody has asked it anything for a while."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

from cluster.backend import NodeError
from cluster.transport import Stream, Transport

IDLE = 20.0  # seconds after which a client does not use a session again; the agent waits longer (SERVE_IDLE)
LARGEST = 8 << 20  # bytes of input; more goes over a channel of its own
LEAST_PYTHON = (3, 8)
VERBS = frozenset({"port", "have", "unpack", "stage", "start", "status"})  # quick, or followed by others

# Looks for the agent file, takes it from standard input where it is missing, and serves. argv: root, name, SHA-256.
# The module is loaded by its path: its compiled form is kept beside it, which a script's is not.
BOOT = (
    "import hashlib,json,os,sys,tempfile\n"
    "from importlib import util\n"
    "r=os.path.abspath(os.path.expanduser(sys.argv[1]));p=os.path.join(r,'bin',sys.argv[2]);i=sys.stdin.buffer\n"
    "f=os.path.exists(p)\n"
    "print(json.dumps({'root':r,'agent':p,'present':f,'python':list(sys.version_info[:3])}),flush=True)\n"
    "if not f:\n"
    " d=i.read(int(i.readline()))\n"
    " if hashlib.sha256(d).hexdigest()!=sys.argv[3]: sys.exit('damaged')\n"
    " b=os.path.dirname(p);os.makedirs(b,exist_ok=True);h,t=tempfile.mkstemp(dir=b)\n"
    " os.write(h,d);os.fsync(h);os.close(h);os.chmod(t,0o644);os.replace(t,p)\n"
    "s=util.spec_from_file_location('ostrain_agent',p);m=util.module_from_spec(s);sys.modules[s.name]=m\n"
    "s.loader.exec_module(m)\n"
    "if not f: print('{}',flush=True)\n"
    "m.serve()\n"
)


class Ended(Exception):
    """The session is of no use any more. The verb was not begun."""


class Session:
    """Open it, ``call`` it, ``close`` it. One call at a time: ``free`` says whether none is under way."""

    def __init__(self, transport: Transport, python: str, root: str, name: str, digest: str, source: bytes) -> None:
        self._argv: Sequence[str] = [python, "-I", "-S", "-c", BOOT, root, name, digest]
        self._transport, self._source = transport, source
        self._stream: Stream | None = None
        self._used = 0.0
        self.lock = threading.Lock()

    @property
    def usable(self) -> bool:
        return self._stream is not None and time.monotonic() - self._used < IDLE

    def open(self, timeout: float) -> dict[str, Any]:
        """What the node said of root, agent and Python. Ended where it does not work there, NodeError where the node
        cannot be reached."""
        self.close()
        self._used = 0.0
        self._stream = self._transport.stream(self._argv, b"")
        seen = self._answer(timeout)
        try:
            new_enough = tuple(seen["python"]) >= LEAST_PYTHON
            if new_enough and not seen["present"]:
                self._stream.send(b"%d\n" % len(self._source) + self._source)
                self._answer(timeout)  # what came before that it would miss: it waits for the pipe, not its buffer
        except (KeyError, TypeError, NodeError) as error:
            self.close()
            raise Ended from error
        if not new_enough:
            self.close()
            raise Ended
        self._used = time.monotonic()
        return seen

    def call(self, verb: str, arguments: Sequence[str], data: bytes, timeout: float) -> dict[str, Any]:
        """The verb's answer. Ended: it was not begun; NodeError: nobody knows whether it was done."""
        if self._stream is None:
            raise Ended
        try:
            head = json.dumps({"verb": verb, "arguments": list(arguments), "size": len(data)})
            self._stream.send(head.encode() + b"\n" + data)
        except NodeError as error:
            self.close()
            raise Ended from error
        answer = self._answer(timeout)
        if "gone" in answer:
            self.close()
            raise Ended
        self._used = time.monotonic()
        return answer

    def _answer(self, timeout: float) -> dict[str, Any]:
        """The next line that is a JSON object; a login shell's start-up files may print others before the first."""
        assert self._stream is not None
        node = self._transport.node
        try:
            for line in self._stream.lines(timeout):
                if line.startswith(b"{"):
                    answer = json.loads(line)
                    if isinstance(answer, dict):
                        return answer
        except ValueError as error:
            self.close()
            raise NodeError("protocol", "the node gave an answer that is no JSON", node=node, why=str(error)) from error
        except NodeError:
            self.close()
            raise
        self.close()
        if not self._used:  # no such Python, or no right to write there: the long way tells what
            raise Ended
        raise NodeError("unreachable", "the node's answer did not come", node=node, why="the agent's session ended")

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
