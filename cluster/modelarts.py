"""ModelArts' training jobs (API v2) through Huawei's SDK: signed requests, checked answers, no request sent twice that
could start a job twice.

The answers' fields used here: ``metadata {id, name, create_time}``, ``status {phase, duration, start_time, tasks,
task_statuses [{task, exit_code, message}]}``; of a log ``{content, current_size, full_size}``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.cloud import CloudError, Patience, kind_of, seconds_of
from cluster.obs import CloudKeys, missing_library

T = TypeVar("T")
PHASES = ("Creating", "Pending", "Running", "Terminating", "Completed", "Failed", "Terminated", "Abnormal")
ENDED = frozenset({"Completed", "Failed", "Terminated", "Abnormal"})
_SERVICE = "ModelArts"
_PAGE = 50  # jobs of one search: the service's limit


@dataclass(frozen=True)
class TaskEnd:
    """How a container ended, as the service tells it."""

    task: str
    exit_code: int | None
    message: str


@dataclass(frozen=True)
class Job:
    """A training job. ended: seconds since the epoch at which it ended by the service's own count, 0 if unknown."""

    id: str
    name: str
    phase: str
    created: float
    ended: float
    tasks: tuple[TaskEnd, ...] = ()


@dataclass(frozen=True)
class LogTail:
    """The last bytes of a container's log: ``content`` is ``[full - len(content), full)``."""

    content: bytes
    full: int


class TrainingJobs:
    """The training jobs of a project."""

    def __init__(
        self,
        url: str,
        project_id: str,
        workspace_id: str,
        keys: CloudKeys,
        *,
        timeout: float,
        patience: Patience,
    ) -> None:
        self._workspace = workspace_id
        self._patience = patience
        self._heard = threading.local()
        self._sdk, self._client = self._connect(url, project_id, keys, timeout)

    def _connect(self, url: str, project_id: str, keys: CloudKeys, timeout: float) -> tuple[Any, Any]:
        try:
            import huaweicloudsdkmodelarts.v1 as sdk
            from huaweicloudsdkcore.auth.credentials import BasicCredentials
            from huaweicloudsdkcore.http.http_config import HttpConfig
            from huaweicloudsdkcore.http.http_handler import HttpHandler
            from requests.adapters import HTTPAdapter
        except ImportError as error:
            raise missing_library("ModelArts", error) from error
        credentials = BasicCredentials(keys.access_key, keys.secret_key, project_id)
        if keys.security_token:
            credentials = credentials.with_security_token(keys.security_token)
        config = HttpConfig.get_default_config()
        config.timeout = (min(timeout, 10.0), timeout)  # to connect, to wait for an answer
        config.retry_times = 0  # the library would repeat without waiting
        handler = HttpHandler().add_response_handler(self._hear)
        client = (
            sdk.ModelArtsClient.new_builder()
            .with_http_config(config)
            .with_http_handler(handler)
            .with_credentials(credentials)
            .with_endpoint(url)
            .build()
        )
        for scheme in ("https://", "http://"):  # its own adapters make an error without headers of a 429
            client._http_client._session.mount(scheme, HTTPAdapter(max_retries=0))
        client._logger.addHandler(logging.NullHandler())  # else what it logs goes to standard error
        return sdk, client

    def _hear(self, **facts: Any) -> None:
        """The library's errors do not hold the answer's headers."""
        self._heard.retry_after = facts["response"].headers.get("Retry-After")

    def check(self) -> None:
        """One request that changes nothing: keys, project and workspace are right."""
        self._search("looking for jobs", [], limit=1)

    def find(self, name: str) -> list[Job]:
        """Jobs of exactly this name, the newest first."""
        condition = self._sdk.Filter(key="name", operator="like", value=[name])
        return [job for job in self._search(f"looking for job {name}", [condition]) if job.name == name]

    def _search(self, doing: str, conditions: list[Any], limit: int = _PAGE) -> list[Job]:
        body = self._sdk.JobSearches(
            offset=0, limit=limit, sort_by="create_time", order="desc", workspace_id=self._workspace, filters=conditions
        )
        request = self._sdk.ListTrainingJobsRequest(body=body)

        def once() -> list[Job]:
            answer = self._once(doing, lambda: self._client.list_training_jobs(request))
            items = getattr(answer, "items", None)
            if items is None and getattr(answer, "total", None) == 0:
                items = []
            if not isinstance(items, list):
                raise _broken(doing, "it lists no jobs")
            return [_job(doing, item) for item in items]

        return self._patience.repeated(once)

    def create(self, body: dict[str, Any], *, looks: int = 4) -> Job:
        """Make a job whose name is unique, at most once.

        Only a request that the service has surely not carried out is sent again: it was throttled, never left this
        machine, or failed (5xx) and a search finds no job of that name. Without a whole answer and with no job found
        it is given up: the request may still be on its way. looks: how many searches, with growing waits between.
        """
        name = body["metadata"]["name"]
        doing = f"creating job {name}"

        def once() -> Job:
            try:
                request = self._sdk.CreateTrainingJobRequest(body=body)
                return _job(doing, self._once(doing, lambda: self._client.create_training_job(request)))
            except CloudError as error:
                if error.kind not in ("unclear", "server"):
                    raise
                there = self._arrived(name, looks)
                if there is not None:
                    return there
                error.final = error.kind == "unclear"
                raise

        return self._patience.repeated(once)

    def _arrived(self, name: str, looks: int) -> Job | None:
        """The job of an unclear request: a search may show it only a moment later."""
        wait = self._patience.first
        for _ in range(looks):
            found = self.find(name)
            if found:
                return found[0]
            self._patience.sleep(wait)
            wait = min(2 * wait, self._patience.longest)
        return None

    def show(self, job_id: str) -> Job:
        request = self._sdk.ShowTrainingJobDetailsRequest(training_job_id=job_id)
        doing = f"asking for job {job_id}"

        def once() -> Job:
            job = _job(doing, self._once(doing, lambda: self._client.show_training_job_details(request)))
            if job.id != job_id:
                raise _broken(doing, f"it tells of job {job.id}")
            return job

        return self._patience.repeated(once)

    def stop(self, job_id: str) -> None:
        """Ask for the job's end. A job that has ended is left alone: the service refuses, which is no error then."""
        action = self._sdk.JobActionType(action_type="terminate")
        request = self._sdk.StopTrainingJobRequest(training_job_id=job_id, body=action)
        try:
            self._patience.repeated(
                lambda: self._once(f"stopping job {job_id}", lambda: self._client.stop_training_job(request))
            )
        except CloudError as error:
            if error.kind != "rejected" or self.show(job_id).phase not in (*ENDED, "Terminating"):
                raise

    def delete(self, job_id: str) -> None:
        """Delete a job's record; one that is not there is no error."""
        request = self._sdk.DeleteTrainingJobRequest(training_job_id=job_id)
        try:
            self._patience.repeated(
                lambda: self._once(f"deleting job {job_id}", lambda: self._client.delete_training_job(request))
            )
        except CloudError as error:
            if error.kind != "missing":
                raise

    def log_tail(self, job_id: str, task: str) -> LogTail:
        """The end of a container's output, at most 5 MB; empty before there is any."""
        request = self._sdk.ShowTrainingJobLogsPreviewRequest(training_job_id=job_id, task_id=task)
        doing = f"reading the log of {task}"

        def once() -> LogTail:
            answer = self._once(doing, lambda: self._client.show_training_job_logs_preview(request))
            content = getattr(answer, "content", None)
            full = getattr(answer, "full_size", None)
            if content is None and not full:
                return LogTail(b"", 0)
            if not isinstance(content, str) or isinstance(full, bool) or not isinstance(full, int):
                raise _broken(doing, "content or full_size is missing")
            data = content.encode("utf-8", "surrogateescape")
            return LogTail(data, max(full, len(data)))

        try:
            return self._patience.repeated(once)
        except CloudError as error:
            if error.kind == "missing":  # the container has not come up
                return LogTail(b"", 0)
            raise

    def close(self) -> None:
        self._client._http_client.close()

    def _once(self, doing: str, call: Callable[[], T]) -> T:
        """One request, its failure as a CloudError."""
        from huaweicloudsdkcore.exceptions import exceptions as sdk
        from requests.exceptions import ConnectTimeout, RequestException

        self._heard.retry_after = None
        try:
            return call()
        except sdk.ServiceResponseException as error:
            raise CloudError(
                kind_of(error.status_code),
                _SERVICE,
                doing,
                str(error.error_msg or "").strip()[:500],
                status=error.status_code,
                code=str(error.error_code or "") if str(error.error_code) != str(error.status_code) else "",
                request_id=str(error.request_id or ""),
                retry_after=seconds_of(getattr(self._heard, "retry_after", None), time.time()),
            ) from error
        except (sdk.ConnectionException, ConnectTimeout) as error:
            text = str(getattr(error, "error_msg", "") or error)
            # Without a connection nothing was sent; a connection that broke may have carried the request.
            never = isinstance(error, ConnectTimeout | sdk.HostUnreachableException | sdk.SslHandShakeException)
            sent = not (never or "NewConnectionError" in text or "Failed to establish" in text)
            raise CloudError("unclear" if sent else "unreachable", _SERVICE, doing, text) from error
        except (sdk.SdkException, RequestException) as error:
            raise CloudError("unclear", _SERVICE, doing, str(error) or type(error).__name__) from error
        except (ValueError, TypeError, KeyError, AttributeError, LookupError) as error:
            raise _broken(doing, f"{type(error).__name__}: {error}") from error


def _broken(doing: str, why: str) -> CloudError:
    return CloudError("unclear", _SERVICE, doing, f"the answer cannot be understood: {why}")


def _job(doing: str, answer: Any) -> Job:
    """A Job of an answer's fields. CloudError (unclear) where one that is needed is missing or of another type."""
    metadata, status = getattr(answer, "metadata", None), getattr(answer, "status", None)
    job_id, name, phase = (getattr(*pair, None) for pair in ((metadata, "id"), (metadata, "name"), (status, "phase")))
    if not isinstance(job_id, str) or not job_id or not isinstance(name, str):
        raise _broken(doing, "the job has no id or name")
    if phase not in PHASES:
        raise _broken(doing, f"the phase is {phase!r}")
    start, duration = _number(status, "start_time"), _number(status, "duration")
    ended = (start + duration) / 1000 if phase in ENDED and start else 0.0
    tasks = getattr(status, "task_statuses", None) or []
    ends = tuple(_task_end(task) for task in tasks if isinstance(getattr(task, "task", None), str))
    return Job(job_id, name, str(phase), _number(metadata, "create_time") / 1000, ended, ends)


def _task_end(task: Any) -> TaskEnd:
    code = getattr(task, "exit_code", None)
    return TaskEnd(task.task, code if isinstance(code, int) else None, str(getattr(task, "message", None) or ""))


def _number(part: Any, name: str) -> float:
    value = getattr(part, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
