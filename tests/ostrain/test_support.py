"""Masking, and a file that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ostrain.errors import OstrainError
from ostrain.support.masking import Masking
from ostrain.support.pack import pack

VALUE = "hf-s3cr3t/with+odd=chars"
PLANTED = [
    (f"export HF_TOKEN={VALUE}", VALUE),
    ("https://me:pa55word@host/x", "pa55word"),
    ("Authorization: Bearer abcdefghijklmnopqrst", "abcdefghijklmnopqrst"),
    ('{"X-Auth-Token": "MIIabcdefgh"}', "MIIabcdefgh"),
    ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl", "eyJzdWIiOiJ4In0"),
    ("hf_abcdefghijklmnopqrstuvwxyz", "hf_abcdefghijklmnopqrstuvwxyz"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "ghp_abcdefghijkl"),
    ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("HUAWEICLOUD_SDK_SK=abcdEFGH12345678", "abcdEFGH12345678"),
    ("ak: ABCDEFGHIJ1234567890", "ABCDEFGHIJ1234567890"),
    ("OBS_PASSWORD='two words here'", "two words"),
    ('"client_secret": "q1w2e3r4t5"', "q1w2e3r4t5"),
    ("https://obs/x?AccessKeyId=AAA1&Signature=abc%2Bdef&x=1", "abc%2Bdef"),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n-----END OPENSSH PRIVATE KEY-----", "b3BlbnNzaC1r"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n(cut off)", "MIIEow"),
]
HARMLESS = [
    '{"tokens_per_s": 279.4, "samples": 4}',
    "caption tokens: 300, max_token: 77",
    '{"HF_TOKEN": "hf_token"}',
    "HF_TOKEN: {secret: hf_token}",
    "model.layers.0.token_embedding.weight [4096, 300]",
    "step 7/20 loss 0.5 lr 1e-4",
    "git@github.com:org/repo.git ssh://node-1:22/x",
    "HCCL_CONNECT_TIMEOUT=1200",
]


def masking() -> Masking:
    return Masking({"HF_TOKEN": VALUE}, frozenset({"hf_token"}))


@pytest.fixture(autouse=True)
def no_credentials_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from ostrain.support.masking import own_credentials

    for name in own_credentials():
        monkeypatch.delenv(name)
    assert os.environ


@pytest.mark.parametrize(("text", "secret"), PLANTED, ids=[text[:24] for text, _ in PLANTED])
def test_what_has_the_shape_of_a_credential_is_masked(text: str, secret: str) -> None:
    mask = masking()
    assert secret not in mask(f"before {text} after")
    assert sum(mask.counts.values()) >= 1
    assert mask(mask(text)) == mask(text), "masking what is masked changes nothing"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_none_stays(text: str) -> None:
    mask = masking()
    assert mask(text) == text and mask.counts == {}


def test_spellings_of_a_value_are_the_value() -> None:
    mask = masking()
    for spelled in (json.dumps(VALUE), "hf-s3cr3t%2Fwith%2Bodd%3Dchars", repr(VALUE)):
        assert "s3cr3t" not in mask(spelled)


def test_credentials_of_the_submitter_are_masked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUAWEICLOUD_SDK_AK", "THE-ACCESS-KEY-ITSELF")
    monkeypatch.setenv("SSH_AGENT_TOKEN_PATH", "/run/user/1/agent")
    assert masking()("uses THE-ACCESS-KEY-ITSELF of /run/user/1/agent") == (
        "uses [secret HUAWEICLOUD_SDK_AK] of /run/user/1/agent"
    )


def test_the_manifest_has_the_hash_of_every_file(tmp_path: Path) -> None:
    target = tmp_path / "x.tar.gz"
    packed = pack(
        target, "run", [("a.txt", f"one {VALUE}\n"), ("b/c.log", "zwei ü\udcff\n")], masking(), {"run_id": "r"}
    )
    assert packed.files == 3 and packed.masked == {"value of a secret": 1}
    with tarfile.open(target) as archive:
        contents = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    manifest = json.loads(contents["run/manifest.json"])
    assert manifest["run_id"] == "r" and manifest["masked"] == {"value of a secret": 1}
    for entry in manifest["files"]:
        assert hashlib.sha256(contents[f"run/{entry['path']}"]).hexdigest() == entry["sha256"]
    assert contents["run/a.txt"] == b"one [secret HF_TOKEN]\n"


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, str]]:
        yield "a.txt", "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "x.tar.gz", "run", broken(), masking(), {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OstrainError, match="cannot be written"):
        pack(tmp_path / "no" / "x.tar.gz", "run", [], masking(), {})


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "x.tar.gz"
    target.write_text("mine")
    with pytest.raises(OstrainError, match="exists"):
        pack(target, "run", [], masking(), {})

    def slow() -> Iterator[tuple[str, str]]:
        other.write_text("somebody else's")
        yield "a.txt", "one"

    other = tmp_path / "y.tar.gz"
    with pytest.raises(OstrainError, match="exists"):
        pack(other, "run", slow(), masking(), {})
    assert other.read_text() == "somebody else's" and len(list(tmp_path.iterdir())) == 2


def test_a_secret_in_a_files_name_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(OstrainError, match="could not be masked"):
        pack(tmp_path / "x.tar.gz", "run", [(VALUE, "text")], masking(), {})
    assert list(tmp_path.iterdir()) == []
