"""Lines as CANN, MindSpore and the kernel write them, and what is made of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostrain.why.blocks import read_blocks
from ostrain.why.codes import KINDS, all_codes, explain, find_code
from ostrain.why.stamps import Level, read_stamp

ZONE = 8 * 3600.0
CODES = [
    ("EI0002: [PID: 7277] 2026-11-22-11:59:30.645.648 The wait execution of the Notify register times out.", "EI0002"),
    ("EI0004: 2026-04-24-06:31:33.915.634 The ranktable or rank is invalid, Reason:[…]", "EI0004"),
    ("[PID: 2103452] 2026-11-03-20:18:46.447.213 Resource_Error_Insufficient_Device_Memory(EI0011): Failed", "EI0011"),
    ("EJ0001: Failed to initialize the HCCP process. Reason: Maybe the last training process is running.", "EJ0001"),
    ("EZ9999[PID: 164243] 2026-04-14-06:40:35.033.745 (EZ9999): there is an exception of aivec error", "aicore_error"),
    ("E39999: Inner Error!", "E39999"),
    ("Call aclrtSetDevice failed, ret[107001]. Got device count[8] and device id[9]", "107001"),
    ("RuntimeError: ACL stream synchronize failed, error code:507035", "507035"),
    ("HBM MULTI BIT ECC ERROR. error code is 507054", "507054"),
    ("[hccl_socket_manager.cc:816][Wait][LinkEstablish]wait socket establish timeout, role[0]", "hccl_socket_timeout"),
    ("topo exchange agent get socket timeout", "hccl_topo_timeout"),
    ("error cqe status: 0x15", "roce_cqe"),
    ("The node: 1 is timed out. It may exit with exception", "heartbeat_lost"),
    ("Worker process 4 exit with exception. Error code: 1.", "msrun_ended"),
    ("Topology build timed out., retry(20/20)", "meeting"),
    ("Failed to call bind, url: 127.0.0.1:18123 Address already in use", "port_in_use"),
    ("Out of memory: Killed process 99 (python)", "host_oom"),
    ("hns3 0000:7d:00.0 eth1: link down", "link_down"),
    ("OSError: [Errno 28] No space left on device", "disk_full"),
    ("Fatal Python error: Segmentation fault", "segfault"),
]
NOT_CODES = [
    "report error module_type=3, module_name=EE8888",
    "step 7/20 loss 0.50701 grad_norm 2070018",
    "wrote 507015 bytes",
    "sha256 aE10001b",
    "checkpoint written to /data/E10001/x",
]


@pytest.mark.parametrize(("line", "code"), CODES, ids=[code for _, code in CODES])
def test_known_lines(line: str, code: str) -> None:
    found = find_code(line)
    assert found is not None and found.code == code


@pytest.mark.parametrize("line", NOT_CODES)
def test_what_only_looks_like_a_code(line: str) -> None:
    assert find_code(line) is None


def test_every_entry_is_whole_and_names_what_to_do() -> None:
    codes = all_codes()
    assert len({code.code for code in codes}) == len(codes) > 100
    for code in codes:
        assert code.kind in KINDS and code.meaning and code.cause, code.code
        assert len(code.fix) > 10, code.code
        assert explain(code.code) == code
    assert {f"EI{number:04d}" for number in range(1, 16)} <= {code.code for code in codes}


def test_commands_that_fixes_name_exist() -> None:
    from ostrain.cli import COMMANDS

    named = {word for code in all_codes() for word in re.findall(r"ostrain (\w+)", code.fix)}
    assert named <= set(COMMANDS), named - set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "moment", "level", "text"),
    [
        ("2026-01-02T03:04:05.678Z ERROR it broke", 1767323045.678, Level.ERROR, "it broke"),
        (
            "[WARNING] ME(5972:14,MainProcess):2026-01-02-11:04:05.678.901 [mindspore/x.py:275] waits",
            1767323045.678901, Level.WARNING, "[mindspore/x.py:275] waits",
        ),
        (
            "[ERROR] HCCL(3977573,all_reduce_test):2026-01-02-11:04:05.678.000 [hccl_socket.cc:816] [7]x",
            1767323045.678, Level.ERROR, "[hccl_socket.cc:816] [7]x",
        ),
        ("2026-01-02 11:04:05,678 - root - ERROR - it broke", 1767323045.678, Level.ERROR, "root - ERROR - it broke"),
        ("1767323045.678 event not written", 1767323045.678, Level.INFO, "event not written"),
        ("2026-99-02T03:04:05Z ERROR no date", None, Level.INFO, "2026-99-02T03:04:05Z ERROR no date"),
        ("ValueError: shapes differ", None, Level.ERROR, "ValueError: shapes differ"),
        ("all is well", None, Level.INFO, "all is well"),
    ],
)  # fmt: skip
def test_stamps(line: str, moment: float | None, level: Level, text: str) -> None:
    stamp = read_stamp(line, ZONE)
    assert stamp.time == (None if moment is None else pytest.approx(moment, abs=1e-5))
    assert (stamp.level, stamp.text) == (level, text)


def test_a_traceback_is_one_error_told_by_its_last_line() -> None:
    log = "\n".join(
        [
            "2026-01-02T03:04:05.000Z INFO step 1/9 loss 0.5",
            "Traceback (most recent call last):",
            '  File "train.py", line 9, in <module>',
            "    run()",
            "RuntimeError: Ascend kernel runtime initialization failed.",
            "",
            "- Ascend Error Message:",
            "EJ0001: Failed to initialize the HCCP process. Reason: Maybe the last training process is running.",
        ]
    )
    (block,) = read_blocks(log, 0.0)
    assert block.code is not None and block.code.code == "EJ0001" and block.guessed
    assert block.time == pytest.approx(1767323045.0) and block.text.startswith("EJ0001: Failed")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.text(alphabet=st.sampled_from("E[I0]012:(-)T.Z \nabcERROR,"), max_size=400))
def test_any_log_is_read(text: str) -> None:
    for block in read_blocks(text, 0.0):
        assert block.lines and isinstance(block.text, str)
