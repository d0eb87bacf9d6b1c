"""``ostrain ranktable check``: samples are good; every rule has a table that breaks it, told word for word."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import pytest

from ostrain.ranktable.check import Expected, check_data
from ostrain.ranktable.rules import RULES
from tests.ostrain.ranktable_helpers import GOLDEN, SAMPLES, Command, runner

BROKEN = sorted((GOLDEN / "broken").glob("*.txt"))
ACCEPTED = sorted((GOLDEN / "accepted").glob("*.txt"))


@pytest.fixture
def ranktable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return runner(monkeypatch, capsys)


def options_of(path: Path) -> list[str]:
    """The words after ``ostrain ranktable`` in a golden file's first line."""
    return shlex.split(path.read_text().split("\n", 1)[0])[3:]


def rule_of(path: Path) -> str:
    return path.stem.partition("-")[0]


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_samples_of_every_format_are_good(path: Path, ranktable: Command) -> None:
    assert ranktable("check", path).code == 0


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_broken_tables_are_refused_for_the_right_reason(
    path: Path, ranktable: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    said = ranktable(*options_of(path))
    assert said.code == 1
    assert said.out == path.read_text().split("\n", 1)[1]
    found = ranktable(*options_of(path), "--json").json[0]["findings"]
    assert rule_of(path) in [finding["rule"] for finding in found if finding["level"] == "error"]


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_what_hccl_accepts_but_nobody_wants_is_told(
    path: Path, ranktable: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    said = ranktable(*options_of(path))
    assert (said.code, said.out) == (0, path.read_text().split("\n", 1)[1])
    findings = ranktable(*options_of(path), "--json").json[0]["findings"]
    levels = {finding["level"] for finding in findings if finding["rule"] == rule_of(path)}
    assert levels and "error" not in levels
    assert ranktable(*options_of(path), "--strict").code == (1 if "warning" in levels else 0)


def test_every_rule_has_a_table_that_breaks_it() -> None:
    shown = {rule_of(path) for path in BROKEN + ACCEPTED}
    assert {name for name, rule in RULES.items() if rule.level == "error"} <= {rule_of(path) for path in BROKEN}
    assert shown == set(RULES)


def test_codes_of_hccl_stand_beside_its_rules(ranktable: Command) -> None:
    def codes(name: str) -> list[str]:
        found = ranktable("check", GOLDEN / "broken" / name, "--json").json[0]["findings"]
        return list(found[0]["codes"])

    assert codes("json-cut.json") == ["EI0004"]
    assert codes("duplicate_ip.json") == ["EI0014", "EI0004"]


def test_json_says_where(ranktable: Command) -> None:
    said = ranktable("check", GOLDEN / "broken" / "duplicate_ip.json", "--json")
    (finding,) = said.json[0]["findings"]
    assert (finding["line"], finding["column"]) == (19, 41)
    assert finding["path"] == ["server_list", 1, "device", 1, "device_ip"]
    assert (said.code, said.json[0]["good"], said.json[0]["ranks"]) == (1, False, 8)


def test_several_files_each_get_a_verdict(ranktable: Command) -> None:
    said = ranktable("check", SAMPLES / "version-1.0.json", GOLDEN / "broken" / "rank_gap.json")
    assert said.code == 1
    assert "version-1.0.json: good" in said.out and "rank_gap.json: HCCL would refuse it" in said.out


def test_a_table_from_standard_input(ranktable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (SAMPLES / "version-1.0.json").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    said = ranktable("check", "-")
    assert said.code == 0 and said.out.startswith("standard input: good")


@pytest.mark.parametrize("name", ["none.json", ".", "/dev/zero", "a\0b.json"])
def test_what_is_no_file_is_a_usage_error(name: str, ranktable: Command) -> None:
    said = ranktable("check", name)
    assert said.code == 2 and "cannot be read" in said.err and "next:" in said.err


def test_text_that_is_not_utf8_is_shown(tmp_path: Path, ranktable: Command) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(b'{\n  "status": "\xff"}')
    said = ranktable("check", path)
    assert said.code == 1 and "t.json:2:14: error: byte 0xff is not UTF-8" in said.out


def test_a_byte_order_mark_is_no_problem(tmp_path: Path, ranktable: Command) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(b"\xef\xbb\xbf" + (SAMPLES / "version-1.0.json").read_bytes())
    assert ranktable("check", path).code == 0


def test_deep_nesting_and_endless_numbers_are_problems_of_the_file(tmp_path: Path, ranktable: Command) -> None:
    for text in ("[" * 100_000, '{"version": ' + "9" * 5000 + "}", '{"version": 1e999}'):
        path = tmp_path / "t.json"
        path.write_text(text)
        assert ranktable("check", path).code == 1


@pytest.mark.parametrize("word", ["255.0.255.0", "x", "129", "-1", "0.0.0.255"])
def test_a_netmask_that_is_none(word: str, ranktable: Command) -> None:
    said = ranktable("check", SAMPLES / "version-1.0.json", f"--netmask={word}")
    assert said.code == 2 and "netmask" in said.err


def test_an_unknown_product_is_a_usage_error(ranktable: Command) -> None:
    said = ranktable("check", SAMPLES / "version-1.0.json", "--product", "H100")
    assert said.code == 2 and "910A, 910B, A3, 950" in said.err


def test_four_planes_of_a_910a_are_no_wrong_subnets(ranktable: Command) -> None:
    assert (
        ranktable("check", SAMPLES / "version-1.0.json", "--netmask", "24", "--product", "910A", "--strict").code == 0
    )


def test_address_forms_of_ipv6_are_one_address() -> None:
    data = json.loads((SAMPLES / "version-1.0-ipv6.json").read_text())
    data["server_list"][0]["device"][0]["device_ip"] = "2001:DB8:20:0:0:0:0:11"
    (finding,) = check_data(data).findings.errors
    assert finding.rule.name == "duplicate_ip"


def test_products_bound_device_ids() -> None:
    data = json.loads((SAMPLES / "version-1.0.json").read_text())
    data["server_list"][0]["device"][7]["device_id"] = "15"
    assert check_data(data).good
    from ostrain.ranktable.products import product

    assert not check_data(data, Expected(product("910a"))).good
