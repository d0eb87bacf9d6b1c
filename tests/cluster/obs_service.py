"""A stand-in of OBS: one bucket in memory, signatures ``OBS AK:base64(hmac-sha1)``, or ``AWS`` where the host is an
address and the bucket stands in the path.

The string to sign is built here from the OBS API reference (authentication in a header), not with the client's code:
method, Content-MD5, Content-Type, Date, sorted x-obs-* (x-amz-*) headers, the resource with its sub-resources.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape, unescape

from tests.cluster.cloud_server import ACCESS_KEY, SECRET_KEY, Answer, Request, Service

BUCKET = "bucket-a"
_SUB_RESOURCES = frozenset({"acl", "delete", "location", "uploads", "versions"})


def _full_path(request: Request) -> str:
    """/bucket/key, whether the bucket stands in the path or in the host's name."""
    if request.headers.get("host", "").startswith(f"{BUCKET}."):
        return f"/{BUCKET}{request.path}"
    return request.path


class ObsService(Service):
    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.kinds: set[str] = set()  # of signatures seen

    def check(self, request: Request) -> str:
        if request.method == "HEAD" and ("apiversion", "") in request.query:
            return ""
        told = re.fullmatch(r"(OBS|AWS) ([^:]+):(\S+)", request.headers.get("authorization", ""))
        if told is None or told[2] != ACCESS_KEY:
            return "no such access key"
        self.kinds.add(told[1])
        mark = "x-obs-" if told[1] == "OBS" else "x-amz-"
        own = sorted((name, value) for name, value in request.headers.items() if name.startswith(mark))
        date = "" if f"{mark}date" in request.headers else request.headers.get("date", "")
        lines = [request.method, request.headers.get("content-md5", ""), request.headers.get("content-type", ""), date]
        lines += [f"{name}:{value.strip()}" for name, value in own]
        resource = quote(_full_path(request), safe="/~")
        wanted = sorted(pair for pair in request.query if pair[0] in _SUB_RESOURCES)
        if wanted:
            resource += "?" + "&".join(name if not value else f"{name}={value}" for name, value in wanted)
        text = "\n".join([*lines, resource])
        signature = base64.b64encode(hmac.new(SECRET_KEY.encode(), text.encode(), hashlib.sha1).digest()).decode()
        return "" if hmac.compare_digest(signature, told[3]) else f"the signature is not that of {text!r}"

    def refuse(self, status: int, code: str, text: str) -> Answer:
        body = f"<Error><Code>{code}</Code><Message>{escape(text)}</Message><RequestId>r-1</RequestId></Error>"
        return Answer(status, body.encode(), {"Content-Type": "application/xml"})

    def handle(self, request: Request) -> Answer:
        bucket, _, key = _full_path(request).lstrip("/").partition("/")
        if bucket != BUCKET:
            return self.refuse(404, "NoSuchBucket", bucket)
        if not key and request.method == "HEAD":
            return Answer(200, b"", {"x-obs-api": "3.0"})  # asked for before signatures of the own kind are used
        with self.lock:
            if not key:
                return self._list(dict(request.query)) if request.method == "GET" else self._delete(request.body)
            if request.method == "PUT":
                return self._put(key, request)
            if key not in self.objects:
                return self.refuse(404, "NoSuchKey", key)
            return self._get(self.objects[key], request)

    def _put(self, key: str, request: Request) -> Answer:
        source = request.headers.get("x-obs-copy-source") or request.headers.get("x-amz-copy-source")
        if source is None:
            self.objects[key] = request.body
            return Answer(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
        name = unquote(source).lstrip("/").removeprefix(f"{BUCKET}/")
        if name not in self.objects:
            return self.refuse(404, "NoSuchKey", name)
        self.objects[key] = self.objects[name]
        body = (
            "<CopyObjectResult><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></CopyObjectResult>"
        )
        return Answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _get(self, data: bytes, request: Request) -> Answer:
        if request.method == "HEAD":
            return Answer(200, b"", {"Content-Length": str(len(data))})
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if span is None:
            return Answer(200, data)
        first, last = int(span[1]), int(span[2]) if span[2] else len(data) - 1
        if first >= len(data):
            return self.refuse(416, "InvalidRange", "behind the end")
        return Answer(206, data[first : last + 1])

    def _list(self, query: dict[str, str]) -> Answer:
        prefix, marker, most = query.get("prefix", ""), query.get("marker", ""), int(query.get("max-keys", 1000))
        keys = [key for key in sorted(self.objects) if key.startswith(prefix) and key > marker]
        page, more = keys[: min(most, 5)], len(keys) > min(most, 5)  # small pages: nobody may forget the next one
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag>"
            f"<Size>{len(self.objects[key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in page
        )
        after = f"<NextMarker>{escape(page[-1])}</NextMarker>" if more else ""
        body = (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>{most}</MaxKeys>"
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{after}{rows}</ListBucketResult>"
        )
        return Answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _delete(self, body: bytes) -> Answer:
        for key in re.findall(r"<Key>([^<]*)</Key>", body.decode()):
            self.objects.pop(unescape(key), None)
        return Answer(200, b"<DeleteResult></DeleteResult>", {"Content-Type": "application/xml"})
