"""What the stand-ins of cloud services share: a server in a thread, faults on demand, a record of requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

ACCESS_KEY, SECRET_KEY = "AKTESTACCESSKEY00001", "sk-of-the-tests-0123456789abcdef"


@dataclass
class Request:
    """One request as it arrived."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    # Break off after so many bytes of the body though the length says more.
    cut: int | None = None


@dataclass
class Fault:
    """What happens to the next ``times`` requests of ``method`` whose path contains ``path``.

    act: carry the request out before it goes wrong. wait: seconds before the answer. answer: instead of the true one.
    """

    method: str
    path: str
    times: int = 1
    answer: Answer | None = None
    act: bool = False
    wait: float = 0.0
    drop: bool = False


class Service:
    """Base of a stand-in: ``handle`` answers a request whose signature was found right by ``check``."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.url = ""

    def check(self, request: Request) -> str:
        """Why a signature is wrong; empty when it is right."""
        raise AssertionError("a stand-in checks signatures")

    def handle(self, request: Request) -> Answer:
        raise AssertionError("a stand-in answers requests")

    def refuse(self, status: int, code: str, text: str) -> Answer:
        raise AssertionError("a stand-in refuses in its service's form")

    def seen(self, method: str, path: str) -> int:
        return sum(one.method == method and path in one.path for one in self.requests)

    def answer(self, request: Request) -> Answer | None:
        """The answer, or None for a connection that breaks."""
        with self.lock:
            self.requests.append(request)
            why = self.check(request)
            fault = next(
                (f for f in self.faults if f.times and f.method == request.method and f.path in request.path), None
            )
            if fault is not None:
                fault.times -= 1
        if why:
            self.problems.append(f"{request.method} {request.path}: {why}")
            return self.refuse(403, "SignatureDoesNotMatch", why)
        if fault is None:
            return self.handle(request)
        true = self.handle(request) if fault.act else None
        time.sleep(fault.wait)
        return None if fault.drop else fault.answer or true or self.handle(request)


def handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            query = parse_qsl(parts.query, keep_blank_values=True)
            request = Request(self.command, unquote(parts.path), query, headers, self.rfile.read(length))
            try:
                answer = service.answer(request)
            except Exception as error:  # the test must see it, not only the client
                service.problems.append(f"{self.command} {self.path}: {error!r}")
                answer = service.refuse(400, "StandIn", repr(error))
            if answer is None:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
            if answer.cut is not None:
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

        def log_message(self, *_: Any) -> None:
            """Nothing: pytest shows what the service recorded."""

    return Handler


@contextmanager
def served(service: Service) -> Iterator[Service]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(service))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)
