"""Stand-ins for what an Atlas 800T A2 has and this machine has not: npu-smi, hccn_tool, /etc/hccn.conf, /dev/davinci*.

They print what the real ones print (samples: idle 8 x 910B3). What is wrong with a node is put into files that can be
written while it is up: ``Ascend/share/{info,health-N,link-N,tls-N}`` in its folder, and its version files.
"""

from __future__ import annotations

from pathlib import Path

_HEALTH = (("Health Status", "OK"), ("Error Code", "NA"), ("Error Information", "NA"))
_BUSES = ("C1", "C2", "81", "82", "01", "02", "41", "42")
_LINE = "+===========================+===============+====================================================+"
_DASH = "+---------------------------+---------------+----------------------------------------------------+"
_WIDE = "+------------------------------------------------------------------------------------------------+"


def info_table(count: int) -> str:
    """``npu-smi info`` of an idle machine."""
    rows = [
        _WIDE,
        "| npu-smi 24.1.rc1.b030            Version: 24.1.rc1.b030                                        |",
        _DASH,
        "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|",
        "| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |",
        _LINE,
    ]
    for number in range(count):
        bus = f"0000:{_BUSES[number % len(_BUSES)]}:00.0"
        rows.append(
            f"| {number:<5} 910B3               | OK            | 98.6        44                0    / 0             |"
        )
        rows.append(f"| 0                         | {bus}  | 0           0    / 0          3314 / 65536         |")
        rows.append(_LINE)
    rows.append(_DASH)
    rows.append("| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |")
    rows.append(_LINE)
    for number in range(count):
        rows.append(f"| {f'No running processes found in NPU {number}':<94} |")
        rows.append(_LINE)
    return "\n".join(rows) + "\n"


def chip_table(count: int) -> str:
    """``npu-smi info -m``."""
    rows = ["\tNPU ID                         Chip ID                        Chip Logic ID                  Chip Name"]
    for number in range(count):
        rows.append(f"\t{number:<30} {0:<30} {number:<30} Ascend 910B3")
        rows.append(f"\t{number:<30} {1:<30} {'-':<30} Mcu")
    return "\n".join(rows) + "\n"


def count_list(count: int) -> str:
    """``npu-smi info -l``."""
    blocks = [f"\tTotal Count                    : {count}\n"]
    blocks += [f"\tNPU ID                         : {n}\n\tChip Count                     : 1\n" for n in range(count)]
    return "\n".join(blocks)


HEALTH = "".join(f"\t{key:<31}: {value}\n" for key, value in _HEALTH)

_NPU_SMI = """#!/bin/sh
here=$(dirname "$0")/../share
case "$*" in
info) cat "$here/info" ;;
"info -l") cat "$here/list" ;;
"info -m") cat "$here/chips" ;;
"info -t health -i "*) [ -f "$here/health-$5" ] && cat "$here/health-$5" || cat "$here/health" ;;
-v) echo "npu-smi version: 24.1.rc1.b030" ;;
*) echo "npu-smi: unsupported: $*" >&2; exit 1 ;;
esac
"""

_HCCN_TOOL = """#!/bin/sh
device=$2
share=/usr/local/Ascend/share
case "$3 $4" in
"-ip -g") sed -n "s/^address_$device=/ipaddr:/p; s/^netmask_$device=/netmask:/p" /etc/hccn.conf ;;
"-net_health -g") echo "net health status: Success" ;;
"-link -g") [ -f "$share/link-$device" ] && cat "$share/link-$device" || echo "link status: UP" ;;
"-tls -g") on=$(cat "$share/tls-$device" 2>/dev/null || echo 0)
    echo "dev_id:$device, tls switch[$on](0:disable, 1:enable), tls preconfigured[1](0:non-preset, 1:preset)" ;;
*) echo "hccn_tool: unsupported: $*" >&2; exit 1 ;;
esac
"""


# Versions that go together, and with MindSpore 2.10; below /usr/local/Ascend.
VERSIONS = {
    "driver/version.info": (
        "Version=25.2.0\nascendhal_version=7.35.23\nInnerversion=V100R001C22SPC001B220\n"
        "compatible_version_fw=[7.0.0,7.7.99]\n"
    ),
    "firmware/version.info": (
        "Version=7.7.0.6.236\nfirmware_version=1.0\ncompatible_version_drv=[25.0,25.0.],[25.2,25.2.],[25.3,25.3.]\n"
    ),
    "ascend-toolkit/latest/x86_64-linux/ascend_toolkit_install.info": (
        "package_name=Ascend-cann-toolkit\nversion=8.3.RC1\narch=x86_64\nos=linux\n"
    ),
    "ascend-toolkit/latest/compiler/version.info": "Version=8.3.T10.0.B100\n",
}


def hccn_conf(count: int, number: int) -> str:
    """``/etc/hccn.conf`` of node ``number``: all its devices in one subnet, as on A2."""
    lines = []
    for device in range(count):
        lines += [
            f"address_{device}=10.20.{number}.{10 + device}",
            f"netmask_{device}=255.255.0.0",
            f"netdetect_{device}=10.20.0.1",
            f"gateway_{device}=10.20.0.1",
            f"send_arp_status_{device}=1",
            f"tls_enable_{device}=0",
        ]
    return "\n".join(lines) + "\n"


def install(folder: Path, count: int, number: int) -> str:
    """Write the stand-ins into a node's folder; the PATH entry that holds them."""
    (folder / "etc" / "hccn.conf").write_text(hccn_conf(count, number))
    for device in [*(f"davinci{n}" for n in range(count)), "davinci_manager", "devmm_svm", "hisi_hdc"]:
        (folder / "dev" / device).touch()
        (folder / "dev" / device).chmod(0o666)
    share, programs = folder / "Ascend" / "share", folder / "Ascend" / "bin"
    driver = folder / "Ascend" / "driver"
    for path in (share, programs, driver / "tools"):
        path.mkdir(parents=True)
    texts = {"info": info_table(count), "list": count_list(count), "chips": chip_table(count), "health": HEALTH}
    for name, text in texts.items():
        (share / name).write_text(text)
    for path, script in ((programs / "npu-smi", _NPU_SMI), (driver / "tools" / "hccn_tool", _HCCN_TOOL)):
        path.write_text(script)
        path.chmod(0o755)
    (programs / "hccn_tool").symlink_to("../driver/tools/hccn_tool")
    for place, text in VERSIONS.items():
        path = folder / "Ascend" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return "/usr/local/Ascend/bin"
