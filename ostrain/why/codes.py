"""Known faults: what a code or a line means, what causes it, what to do, and whether it can only follow another fault.

The tables are the YAML files beside this one: CANN's codes (``hccl``, ``cann``), lines without a code (``messages``)
and signals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

KINDS = ("network", "memory", "hardware", "config", "code", "timeout", "killed", "data")


@dataclass(frozen=True)
class Code:
    """One known fault.

    code: as CANN writes it, a signal's name, or a word of ours. kind: one of KINDS. consequence: it tells of somebody
    else's absence or slowness; an earlier fault of another rank is its cause. benign: it is normal while a run starts.
    """

    code: str
    kind: str
    meaning: str
    cause: str
    fix: str
    consequence: bool = False
    benign: bool = False

    def as_dict(self) -> dict[str, object]:
        return {
            "code": self.code,
            "kind": self.kind,
            "meaning": self.meaning,
            "cause": self.cause,
            "fix": self.fix,
            "consequence": self.consequence,
        }


# CANN writes its codes as ``EI0004: …``, ``EI0002: [PID: 7] …``, ``EZ9999[PID: 7] …`` and, from 8.5 on,
# ``Some_Error_Type(EI0011): …``. ``module_name=EE8888`` names a module, not a fault.
_CANN = re.compile(r"(?<![\w=])(E[0-9A-Z]\d{4})(?=\s*:|\s*\[PID|\):)|\((E[0-9A-Z]\d{4})\):")
# Return codes of the runtime (acl/error_codes/rt_error_codes.h) stand in many phrasings; only after one of these words.
_RUNTIME = re.compile(
    r"(?:\bcode|err(?:or)?_?code|ret(?:code|val)?|aclRet|acl error|status)(?: is)?[\s:=\[(]*"
    r"(107\d{3}|207\d{3}|507\d{3})\b",
    re.IGNORECASE,
)
_PLOG = "read that rank's plog (ostrain bundle packs it): its first [ERROR] line names the operator or address"
_MODULES = {
    "1": "graph engine", "2": "fusion engine", "3": "AI CPU", "4": "operator compiler", "8": "vector operators",
    "B": "operator compiler's passes", "C": "auto tuning", "E": "runtime", "F": "fusion", "G": "tuning", "H": "ACL",
    "I": "HCCL", "J": "HCCP", "K": "profiling", "L": "driver", "M": "queue scheduler", "N": "media", "O": "compression",
    "P": "dump", "Z": "operators",
}  # fmt: skip


@cache
def _table(name: str) -> dict[str, dict[str, Any]]:
    import yaml

    text = resources.files("ostrain.why").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def _code(name: str, entry: dict[str, Any]) -> Code:
    facts = {key: value for key, value in entry.items() if key != "pattern"}
    return Code(code=name, **{**facts, "fix": _PLOG if facts["fix"] == "PLOG" else facts["fix"]})


@cache
def cann() -> dict[str, Code]:
    """CANN's codes and the runtime's return codes."""
    return {name: _code(name, entry) for table in ("hccl", "cann") for name, entry in _table(table).items()}


@cache
def signals() -> dict[str, Code]:
    """Signals that end processes, by name."""
    return {name: _code(name, entry) for name, entry in _table("signals").items()}


@cache
def phrases() -> tuple[tuple[re.Pattern[str], Code], ...]:
    """Patterns of lines, in the order in which they are tried."""
    return tuple((re.compile(entry["pattern"]), _code(name, entry)) for name, entry in _table("messages").items())


@cache
def _any_phrase() -> re.Pattern[str]:
    # Flags such as (?i) may only stand at a pattern's start: each becomes a group of its own.
    parts = [re.sub(r"^\(\?i\)(.*)$", r"(?i:\1)", pattern.pattern) for pattern, _ in phrases()]
    return re.compile("|".join(f"(?:{part})" for part in parts))


def find_code(text: str) -> Code | None:
    """The known fault that a line tells of: a code in it first, then a phrase; None where there is neither."""
    if match := _CANN.search(text):
        name = match[1] or match[2]
        # An inner error's text often says more than its number.
        found = (find_phrase(text) if name[2] == "9" else None) or describe_cann(name)
        if found is not None:
            return found
    if (match := _RUNTIME.search(text)) and match[1] in cann():
        return cann()[match[1]]
    return find_phrase(text)


def find_phrase(text: str) -> Code | None:
    """The known fault that a line's words tell of."""
    if not _any_phrase().search(text):
        return None
    return next((code for pattern, code in phrases() if pattern.search(text)), None)


def describe_cann(code: str) -> Code | None:
    """A code of CANN's or the runtime's. One without an entry is explained by its module; None for what is no code."""
    if code in cann():
        return cann()[code]
    if len(code) != 6 or code[0] != "E" or code[1] not in _MODULES or not code[2:].isdigit():
        return None
    module = _MODULES[code[1]]
    inner = code[2] == "9"
    meaning = f"an inner error of CANN's {module}" if inner else f"an error of CANN's {module}"
    return Code(code, "code", meaning, "the lines around it tell more", _PLOG)


def explain(word: str) -> Code | None:
    """A known fault by its name: ``EI0006``, ``507015``, ``SIGKILL``, ``link_down``."""
    named = {code.code: code for _, code in phrases()}
    return describe_cann(word.upper()) or signals().get(word.upper()) or named.get(word.lower())


def all_codes() -> list[Code]:
    """Every entry of the tables."""
    return [*cann().values(), *(code for _, code in phrases()), *signals().values()]
