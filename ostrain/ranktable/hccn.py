"""Output of ``hccn_tool`` and content of ``/etc/hccn.conf``: addresses of the NPUs' network cards."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ostrain.errors import OstrainError
from ostrain.ranktable.subnets import Network, network_of, prefix_of
from ostrain.ranktable.walk import Address, address

_CONF = re.compile(r"\s*(ipv6_?address|address6?|netmask6?|prefix6?|gateway6?)_([0-9]{1,3})\s*=\s*(\S+)", re.IGNORECASE)
_WORD = re.compile(r"[0-9A-Fa-f:.]{2,45}")


@dataclass(frozen=True)
class NicAddress:
    """An address with what is known of its network; prefix None: unknown."""

    ip: Address
    prefix: int | None = None
    gateway: Address | None = None

    @property
    def network(self) -> Network | None:
        return network_of(self.ip, self.prefix) if self.prefix is not None else None


def parse_conf(text: str) -> dict[int, dict[int, NicAddress]]:
    """IP version -> device -> address, of a ``hccn.conf``. Lines of other kinds are passed over."""
    values: dict[tuple[str, int], str] = {}
    for line in text.splitlines():
        if match := _CONF.match(line):
            values[match[1].lower(), int(match[2])] = match[3]
    found: dict[int, dict[int, NicAddress]] = {4: {}, 6: {}}
    for (key, device), value in values.items():
        ip = address(value.partition("/")[0]) if "address" in key else None
        if ip is None:
            continue
        suffix = "6" if ip.version == 6 and ("netmask6", device) in values else ""
        mask = values.get((f"netmask{suffix}", device)) or values.get((f"prefix{suffix}", device), "")
        mask = value.partition("/")[2] or mask
        gateway = address(values.get((f"gateway{suffix}", device), ""))
        found[ip.version][device] = NicAddress(ip, _prefix(mask, ip.version), gateway)
    return found


def _prefix(text: str, version: int) -> int | None:
    try:
        prefix = prefix_of(text) if text else None
    except OstrainError:  # an IPv4 mask of an IPv6 address, or nonsense: nothing is known then
        return None
    return prefix if prefix is None or prefix <= (32 if version == 4 else 128) else None


def parse_tool(output: str) -> NicAddress | None:
    """``hccn_tool -i N -ip -g`` (or ``-ip -inet6 -g``); None where the card has no address."""
    ip: Address | None = None
    prefix = ""
    for line in output.splitlines():
        key, _, rest = line.replace("=", ":", 1).partition(":")
        key, value = key.lower(), (rest.split() or [""])[0]
        if "mask" in key or "prefix" in key:
            prefix = value
        elif "addr" in key and ip is None:
            word, _, length = value.partition("/")
            ip = address(word)
            prefix = length or prefix
    return NicAddress(ip, _prefix(prefix, ip.version)) if ip is not None else None


def parse_gateway(output: str) -> Address | None:
    """``hccn_tool -i N -gateway -g``: the first address it prints."""
    words = (word.rstrip(".:") for word in _WORD.findall(output))
    found = (address(word) or address(word.removeprefix(":")) for word in words)
    return next((ip for ip in found if ip is not None), None)


def merged(tool: NicAddress | None, conf: NicAddress | None, gateway: Address | None) -> NicAddress | None:
    """What the card has, with what only the file says of the same address; the file's where the tool said nothing."""
    if tool is None:
        return conf
    same = conf if conf is not None and conf.ip == tool.ip else None
    prefix = tool.prefix if tool.prefix is not None else (same.prefix if same else None)
    return replace(tool, prefix=prefix, gateway=gateway or (same.gateway if same else None))


def first_words(output: str) -> str:
    """The first line with something in it, for messages about a command that gave no answer."""
    return next((line.strip()[:120] for line in output.splitlines() if line.strip()), "")
