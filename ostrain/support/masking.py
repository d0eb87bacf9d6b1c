"""Masking of what must not leave: values of the job's secrets, and whatever has the shape of a credential.

It errs on the side of masking: a word too many costs a reader a guess, one too few costs an account.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from cluster.agent import Masker

# Names whose values are secret wherever they stand: in environment dumps, YAML, JSON, command lines.
_NAMES = (
    r"pass(?:word|wd|phrase)|secret(?:[_-]?(?:access[_-]?)?key)?|api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key"
    r"|(?:auth|access|refresh|session|security|id|hf|api|bearer)[_-]?token|token|credentials?|(?:sdk|cloud|obs)[_-](?:ak|sk)"
    r"|client[_-]?secret|cookie|signature"
)
_LEAST_NAMED = 6  # letters; shorter values are numbers, words or empty


def _keep_name(match: re.Match[str]) -> str:
    return match[1] + "[masked]"


def _keep_ends(match: re.Match[str]) -> str:
    return f"{match[1]}[masked]{match[2]}"


# (what, pattern, replacement). Shapes as their issuers document them.
_SHAPES: tuple[tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (
        "private key",
        re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?(?:-----END \1PRIVATE KEY-----|\Z)", re.DOTALL),
        "[masked private key]",
    ),
    ("password in a URL", re.compile(r"(\b[a-z][a-z0-9+.-]{1,15}://[^\s/:@'\"]*:)[^\s/@'\"]+(@)"), _keep_ends),
    (
        "authorization header",
        re.compile(r"((?i:Authorization|X-Auth-Token|X-Security-Token)[\"']?\s*[:=]\s*[\"']?)[^\r\n\"']+"),
        _keep_name,
    ),
    ("bearer", re.compile(r"(\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{12,}"), _keep_name),
    ("JWT", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"), "[masked JWT]"),
    ("Hugging Face token", re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"), "[masked token]"),
    ("GitHub token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})"), "[masked token]"),
    ("GitLab token", re.compile(r"\bglpat-[A-Za-z0-9_-]{16,}"), "[masked token]"),
    ("Slack token", re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"), "[masked token]"),
    ("API key", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"), "[masked key]"),
    ("AWS key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), "[masked key]"),
    ("signed URL", re.compile(r"([?&](?:X-(?:Amz|Obs)-[A-Za-z-]+|Signature|AccessKeyId|sig|token)=)[^&\s\"']+"),
     _keep_name),
)  # fmt: skip
# AK and SK of Huawei Cloud: 20 and 40 letters and digits, believed to be keys only where both kinds of letters mix and
# a word beside them says so.
_CLOUD_KEY = re.compile(
    r"(\b(?:ak|sk)\b[\"']?\s*[:=,]?\s*(?:is\s+)?[\"']?)([A-Za-z0-9]{20}(?:[A-Za-z0-9]{20})?)\b", re.IGNORECASE
)
_NAMED = re.compile(
    rf"((?<![A-Za-z0-9])[\"']?(?:[A-Za-z0-9]+[_.-])*(?:{_NAMES})(?![A-Za-z0-9_])[\"']?\s*[:=]\s*)"
    r"(\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|[^\s\"',;{}\[\]()]+)",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|_SK|_AK)", re.IGNORECASE
)


class Masking:
    """Masks texts, and counts what it masked by kind.

    secrets: environment variable -> value, those of the job. known: words that are names of secrets, not values.
    """

    def __init__(self, secrets: Mapping[str, str], known: frozenset[str] = frozenset()) -> None:
        found = {**own_credentials(), **secrets}
        self._masker = Masker(found) if found else None
        self._known = known
        self.counts: dict[str, int] = {}

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._masker is not None:
            data = text.encode("utf-8", "surrogateescape")
            masked = self._masker.mask(data)
            if masked != data:
                self._count("value of a secret", max(1, masked.count(b"[secret ") - data.count(b"[secret ")))
                text = masked.decode("utf-8", "surrogateescape")
        for what, pattern, replacement in _SHAPES:
            text, count = pattern.subn(replacement, text)
            self._count(what, count)
        text = _CLOUD_KEY.sub(self._cloud_key, text)
        return _NAMED.sub(self._named, text)

    def clean(self, text: str) -> bool:
        """Whether no value of a secret stands in the text."""
        if self._masker is None:
            return True
        data = text.encode("utf-8", "surrogateescape")
        return self._masker.mask(data) == data

    def _cloud_key(self, match: re.Match[str]) -> str:
        if match[2].isdigit() or match[2].isalpha():
            return match[0]
        self._count("AK or SK", 1)
        return match[1] + "[masked]"

    def _named(self, match: re.Match[str]) -> str:
        value = match[2].strip("\"'")
        harmless = len(value) < _LEAST_NAMED or value in self._known or "[masked" in value or "[secret" in value
        if harmless or re.fullmatch(r"[\d.eE+-]+|true|false|null|none", value, re.IGNORECASE):
            return match[0]
        self._count("value of a name", 1)
        quote = match[2][0] if match[2][0] in "\"'" else ""
        return f"{match[1]}{quote}[masked]{quote}"

    def _count(self, what: str, number: int) -> None:
        if number:
            self.counts[what] = self.counts.get(what, 0) + number


def own_credentials() -> dict[str, str]:
    """Credentials in this process's environment, by the names of their variables."""
    return {
        name: value
        for name, value in os.environ.items()
        if len(value) >= 8 and _SECRET_VARIABLE.search(name) and not os.path.isabs(value)
    }
