"""Follows a run on ModelArts by looking again and again: objects that grew, statuses that changed, the platform's logs.

Bytes come in order and once: each file has a cursor, and only what lies behind it is read. The final status of a node
is told after every byte that its container says it handed over, or SETTLE seconds after the job's end.
"""

from __future__ import annotations

import codecs
import fnmatch
import time
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.backend import Chunk, FollowItem, FollowLost, NodeError, NodeNews, Tick
from cluster.cloud import CloudError
from cluster.modelarts_run import ServiceRun
from cluster.modelarts_status import FINAL, SETTLE, Attempt, merged

PORTION = 4 << 20
GIVE_UP = 600.0


class Follower:
    """The looks at one run. ``every``: seconds between two."""

    def __init__(
        self, run: ServiceRun, cursors: Mapping[str, Mapping[str, int]], patterns: tuple[str, ...], every: float
    ) -> None:
        self.run, self.patterns, self.every = run, patterns, every
        names = [node.name for node in run.run.plan.nodes]
        self.cursors = {name: dict(cursors.get(name, {})) for name in names}
        self.last: dict[str, dict[str, Any]] = {}

    def follow(self, until_final: bool) -> Iterator[FollowItem]:
        well = time.monotonic()
        while True:
            try:
                ended, items = self.look(until_final)
                yield from items
                well = time.monotonic()
                if ended or not until_final:
                    return
                yield from (Tick(name) for name in self.cursors)
            except CloudError as error:
                final = not until_final or not error.passing or time.monotonic() - well > GIVE_UP
                for name in self.cursors:
                    yield FollowLost(name, as_node_error(error, name), final)
                if final:
                    return
            time.sleep(self.every)

    def look(self, until_final: bool) -> tuple[bool, Iterator[FollowItem]]:
        """Whether this is the end, and what is new. Statuses are read before files: what is final was written then."""
        attempt = self.run.attempt()
        if attempt is None:
            missing = [NodeError("no_run", "the run was never started", node=name) for name in self.cursors]
            return True, iter([FollowLost(error.node, error, True) for error in missing])
        records = self.run.records()
        statuses = merged(self.run.run.plan, attempt, records, time.time())
        there = self.listing()
        late = attempt.job is not None and time.time() - (attempt.job.ended or attempt.created) > SETTLE
        lacking = {name for name in records if not late and self.lacks(records[name], there.get(name, {}))}
        final = all(status["state"] in FINAL for status in statuses.values()) and not lacking

        def items() -> Iterator[FollowItem]:
            for name, files in there.items():
                for path in sorted(files):
                    yield from self.rest(name, path, files[path], final or not until_final)
            yield from self.service_logs(attempt, final or not until_final)
            for name, status in statuses.items():
                shown = {**status, "time": 0}
                if name not in lacking and shown != self.last.get(name):
                    self.last[name] = shown
                    yield NodeNews(name, status)

        return final, items()

    def listing(self) -> dict[str, dict[str, int]]:
        """node -> path -> bytes, of files that match the patterns."""
        found: dict[str, dict[str, int]] = {name: {} for name in self.cursors}
        for name, files in found.items():
            prefix = self.run.folder(name)
            for entry in self.run.store.list(prefix):
                path = entry.key[len(prefix) :]
                if any(matches(path, pattern) for pattern in self.patterns):
                    files[path] = entry.size
        return found

    def lacks(self, record: Mapping[str, Any], there: Mapping[str, int]) -> bool:
        """Whether files are shorter here than their container said when it ended."""
        if (record.get("status") or {}).get("state") not in FINAL:
            return False
        told = record.get("files") or {}
        wanted = {path: size for path, size in told.items() if any(matches(path, one) for one in self.patterns)}
        return any(there.get(path, 0) < size for path, size in wanted.items())

    def rest(self, node: str, path: str, size: int, last: bool) -> Iterator[Chunk]:
        """What a file has beyond its cursor. A character that is not whole waits, unless this is the last look."""
        while (offset := self.cursors[node].get(path, 0)) < size:
            key = self.run.folder(node) + path
            data = self.run.store.get(key, offset, min(PORTION, size - offset)) or b""
            text = data if last and offset + len(data) >= size else whole_characters(data)
            if not text:
                return
            yield self.chunk(node, path, offset, text)

    def chunk(self, node: str, path: str, offset: int, data: bytes) -> Chunk:
        end = offset + len(data)
        self.cursors[node][path] = end
        return Chunk(node, path, offset, end, data.decode("utf-8", "surrogateescape"))

    def service_logs(self, attempt: Attempt, last: bool) -> Iterator[Chunk]:
        """The platform's log of every container. It gives the last 5 MB only: what went by is told."""
        path = f"logs/attempt-{attempt.number}/service.log"
        if attempt.job is None or not any(matches(path, pattern) for pattern in self.patterns):
            return
        for index, name in enumerate(self.cursors):
            tail = self.run.jobs.log_tail(attempt.job.id, f"worker-{index}")
            offset, begin = self.cursors[name].get(path, 0), tail.full - len(tail.content)
            if tail.full <= offset:
                continue
            if begin > offset:
                note = f"[{begin - offset} bytes are gone: the service keeps the end only]\n".encode()
                gap = note[-(begin - offset) :].rjust(begin - offset, b".")
                yield self.chunk(name, path, offset, gap)
                offset = begin
            data = tail.content[offset - begin :]
            text = data if last else whole_characters(data)
            if text:
                yield self.chunk(name, path, offset, text)


def matches(path: str, pattern: str) -> bool:
    """As the agent's globs: ``*`` does not go over ``/``, ``**`` does."""
    parts, wanted = path.split("/"), pattern.split("/")
    if "**" in wanted:
        return fnmatch.fnmatchcase(path, pattern.replace("**/", "*"))
    return len(parts) == len(wanted) and all(
        fnmatch.fnmatchcase(part, one) for part, one in zip(parts, wanted, strict=True)
    )


def whole_characters(data: bytes) -> bytes:
    """``data`` without the beginning of a UTF-8 character at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    decoder.decode(data)
    pending = decoder.getstate()[0]
    return data[: len(data) - len(pending)] if pending else data


def as_node_error(error: CloudError, node: str) -> NodeError:
    kinds = {"denied": "auth_failed", "missing": "no_run", "rejected": "protocol"}
    return NodeError(
        kinds.get(error.kind, "unreachable"),
        error.what,
        node=node,
        why=error.why,
        next_step=error.next_step,
        exit_code=int(error.exit_code),
    )
