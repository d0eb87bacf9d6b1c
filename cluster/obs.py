"""Objects in a bucket: what is needed of OBS, and OBS itself through Huawei's own client library.

Every operation here leaves the same state when it arrives twice, so all are repeated where that may help
(``cluster.cloud``). Keys are full object names without a leading slash.
"""

from __future__ import annotations

import functools
import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cluster.cloud import CloudError, Kind, Patience, kind_of, seconds_of
from ostrain.errors import OstrainError

T = TypeVar("T")
PAGE = 1000  # keys of one listing or deletion: the service's limit
LARGEST = 5 << 30  # bytes of one PUT: the service's limit
PIP = "pip install 'ostrain[modelarts]'"


@dataclass(frozen=True)
class CloudKeys:
    """What signs requests. Never printed: the representation has no values."""

    access_key: str
    secret_key: str
    security_token: str = ""

    def __repr__(self) -> str:
        return "CloudKeys(…)"


def missing_library(service: str, error: ImportError) -> OstrainError:
    """What to tell where the extra ``modelarts`` is not installed."""
    return OstrainError(f"{service} needs a library that is not here", why=str(error), next_step=PIP, exit_code=2)


@dataclass(frozen=True)
class Entry:
    """An object of a listing. size in bytes."""

    key: str
    size: int


class ObsStore(Protocol):
    """A bucket. Every method raises CloudError; ``get`` and ``size`` tell of a missing object by None."""

    def put(self, key: str, content: bytes | Path) -> None: ...
    def get(self, key: str, offset: int = 0, limit: int | None = None) -> bytes | None: ...
    def size(self, key: str) -> int | None: ...
    def copy(self, source: str, target: str) -> None: ...
    def list(self, prefix: str) -> Iterator[Entry]: ...
    def delete(self, keys: Iterable[str]) -> None: ...
    def close(self) -> None: ...


class HuaweiObs:
    """A bucket of OBS. Imports the client library; certificates and host names are verified."""

    def __init__(self, url: str, bucket: str, keys: CloudKeys, *, timeout: float, patience: Patience) -> None:
        try:
            from obs import ObsClient
        except ImportError as error:
            raise missing_library("OBS", error) from error
        self.bucket = bucket
        self._patience = patience
        self._client: Any = ObsClient(
            access_key_id=keys.access_key,
            secret_access_key=keys.secret_key,
            security_token=keys.security_token or None,
            server=url,
            signature="obs",
            timeout=timeout,
            max_retry_count=0,
            ssl_verify=True,
        )
        # The library makes a context that checks certificates, but not whose they are.
        self._client.context = ssl.create_default_context()

    def put(self, key: str, content: bytes | Path) -> None:
        """Write an object: bytes, or the content of a file (at most 5 GB)."""
        if isinstance(content, bytes):
            self._ask(f"writing {key}", lambda: self._client.putContent(self.bucket, key, content))
            return
        if os.path.getsize(content) > LARGEST:
            raise OstrainError(f"{content} is larger than one object may be (5 GB)", next_step="mount it as a volume")
        self._ask(f"writing {key}", lambda: self._client.putFile(self.bucket, key, str(content)))

    def get(self, key: str, offset: int = 0, limit: int | None = None) -> bytes | None:
        """At most ``limit`` bytes from ``offset`` on; b"" behind the end; None where there is no such object."""
        from obs import GetObjectHeader

        if limit == 0:
            return b""
        headers = GetObjectHeader()
        if offset or limit is not None:
            headers.range = f"{offset}-{'' if limit is None else offset + limit - 1}"

        def once() -> bytes:
            answer = self._once(
                f"reading {key}",
                lambda: self._client.getObject(self.bucket, key, headers=headers, loadStreamInMemory=True),
            )
            data = answer.body.buffer or b""
            told = dict(answer.header or ()).get("content-length")
            if told is not None and int(told) != len(data):
                raise CloudError("unclear", "OBS", f"reading {key}", f"{len(data)} of {told} bytes arrived")
            return bytes(data)

        try:
            return self._patience.repeated(once)
        except CloudError as error:
            if error.status == 416:
                return b""
            if error.kind == "missing":
                return None
            raise

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""
        try:
            answer = self._ask(f"looking at {key}", lambda: self._client.getObjectMetadata(self.bucket, key))
        except CloudError as error:
            if error.kind == "missing":
                return None
            raise
        return int(dict(answer.header).get("content-length", 0))

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the bucket, without its bytes coming here."""
        self._ask(f"copying {source}", lambda: self._client.copyObject(self.bucket, source, self.bucket, target))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Objects whose keys begin with ``prefix``, by key."""
        marker: str | None = None
        while True:
            page = functools.partial(self._client.listObjects, self.bucket, prefix=prefix, marker=marker, max_keys=PAGE)
            answer = self._ask(f"listing {prefix}", page)
            for one in answer.body.contents or ():
                yield Entry(str(one.key), int(one.size))
            marker = answer.body.next_marker
            if not answer.body.is_truncated or not marker:
                return

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are no error."""
        from obs import DeleteObjectsRequest, Object

        waiting = list(keys)
        for start in range(0, len(waiting), PAGE):
            request = DeleteObjectsRequest(quiet=True, objects=[Object(key) for key in waiting[start : start + PAGE]])
            answer = self._ask("deleting", functools.partial(self._client.deleteObjects, self.bucket, request))
            if answer.body is not None and answer.body.error:
                first = answer.body.error[0]
                raise CloudError("rejected", "OBS", f"deleting {first.key}", str(first.message), code=str(first.code))

    def close(self) -> None:
        self._client.close()

    def _ask(self, doing: str, call: Callable[[], Any]) -> Any:
        return self._patience.repeated(lambda: self._once(doing, call))

    def _once(self, doing: str, call: Callable[[], Any]) -> Any:
        """One request. The library tells of refusals in its answer, and raises whatever else goes wrong."""
        try:
            answer = call()
        except OSError as error:
            kind: Kind = "unreachable" if isinstance(error, ConnectionRefusedError) else "unclear"
            raise CloudError(kind, "OBS", doing, str(error) or type(error).__name__) from error
        except Exception as error:  # of http.client, of parsing XML: whatever the library met in a broken answer
            raise CloudError("unclear", "OBS", doing, f"{type(error).__name__}: {error}") from error
        status = int(getattr(answer, "status", None) or 0)
        if status == 0:
            raise CloudError("unclear", "OBS", doing, str(getattr(answer, "reason", "") or "no answer"))
        if status >= 300:
            header = dict(answer.header or ())
            raise CloudError(
                kind_of(status),
                "OBS",
                doing,
                str(answer.errorMessage or answer.reason or ""),
                status=status,
                code=str(answer.errorCode or ""),
                request_id=str(answer.requestId or ""),
                retry_after=seconds_of(header.get("retry-after"), time.time()),
            )
        return answer
