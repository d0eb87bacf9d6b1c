"""What several commands share: finding a run, opening its backend, secrets, options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from cluster.backend import Backend
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan
from ostrain.states import ExitCode
from ostrain.store import Run, Store
from ostrain.talk import say

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Data as JSON on standard output.")(function)


@contextmanager
def opened_store() -> Iterator[Store]:
    store = Store()
    try:
        yield store
    finally:
        store.close()


@contextmanager
def opened_backend(plan: LaunchPlan) -> Iterator[Backend]:
    from cluster.backends import open_backend

    backend = open_backend(plan)
    try:
        yield backend
    finally:
        backend.close()


@contextmanager
def opened_run(word: str) -> Iterator[tuple[Store, Run, Backend]]:
    """The store, the run that ``word`` names, and its backend."""
    with opened_store() as store:
        run = store.find(word)
        with opened_backend(run.plan) as backend:
            yield store, run, backend


def resolved_secrets(plan: LaunchPlan) -> dict[str, str]:
    """Environment variable -> value, looked up now and kept in memory only. Refused where one stands in the job."""
    if not plan.secrets:
        return {}
    from cluster.secrets import resolve_secrets
    from ostrain.leaks import refuse_leaks, short_ones

    values = dict(resolve_secrets(plan.secrets))
    refuse_leaks(plan, values)
    for variable in short_ones(values):
        say(f"warning: the secret {plan.secrets[variable]} is too short to be masked in the logs")
    return values


@contextmanager
def numpy_needed() -> Iterator[None]:
    """For imports of the payload's modules: what is not installed here, in the command line's words."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise OstrainError(
            f"this command needs {error.name}, which is not installed here",
            next_step="pip install 'ostrain[models]', or run it on a node",
            exit_code=ExitCode.USAGE,
        ) from error


@contextmanager
def payload_errors() -> Iterator[None]:
    """Errors of reading and writing, in the command line's words."""
    from models.exits import PayloadError

    try:
        yield
    except PayloadError as error:
        raise OstrainError(error.what, where=error.where, why=error.why, next_step=error.next_step) from error
    except OSError as error:
        raise OstrainError(
            "a file cannot be read or written", where=str(error.filename or ""), why=error.strerror or str(error),
            next_step="look at that disk: its space and permissions",
        ) from error  # fmt: skip
