"""Wrong subnets: a device whose network differs from what the rest of its server, or its peers on others, make a rule.

Networks are planned in three ways: one for all devices (A2), four for the pairs 0-4, 1-5, 2-6, 3-7 (910A), two for
the dies of each card (A3). Nothing of that is assumed: more than half of a server's devices, or of the devices with the
same id on all servers, in one network make that network the rule for the rest.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ostrain.errors import OstrainError
from ostrain.ranktable.walk import Address
from ostrain.states import ExitCode

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Outlier:
    """A device in another network than ``expected``. ``whole_server``: so are all of its server's devices."""

    server: int
    device: int
    network: Network
    expected: Network
    whole_server: bool = False


def network_of(ip: Address, prefix: int) -> Network:
    length = min(prefix, ip.max_prefixlen)
    host_bits = ip.max_prefixlen - length
    return _network(ip.version, int(ip) >> host_bits << host_bits, length)


@lru_cache(maxsize=1 << 14)  # thousands of devices share a few networks and masks
def _network(version: int, base: int, length: int) -> Network:
    return ipaddress.IPv4Network((base, length)) if version == 4 else ipaddress.IPv6Network((base, length))


@lru_cache(maxsize=1 << 10)
def prefix_of(text: str) -> int:
    """``24``, ``/24``, ``255.255.255.0`` as a prefix length. OstrainError (exit 2) for others."""
    word = text.strip().removeprefix("/")
    try:
        if word.isascii() and word.isdigit():
            if int(word) > 128:
                raise ValueError
            return int(word)
        # ip_network would take a host mask (0.0.0.255) for a netmask.
        bits = f"{int(ipaddress.IPv4Address(word)):032b}"
        if "01" in bits:
            raise ValueError
        return bits.count("1")
    except ValueError:
        raise OstrainError(
            f"{text!r} is no netmask", next_step="write 255.255.255.0 or 24", exit_code=ExitCode.USAGE
        ) from None


def outliers(servers: Sequence[dict[int, Network]]) -> list[Outlier]:
    """servers: device id -> network, server by server."""
    planes: dict[int, Counter[Network]] = {}
    for networks in servers:
        for device, network in networks.items():
            planes.setdefault(device, Counter())[network] += 1
    usual = {device: rule for device, counts in planes.items() if (rule := _rule(counts, len(servers))) is not None}
    found = []
    for number, networks in enumerate(servers):
        off = {device for device, network in networks.items() if usual.get(device, network) != network}
        if off and off == set(networks) and len(networks) > 1:
            device = min(off)
            found.append(Outlier(number, device, networks[device], usual[device], whole_server=True))
            off = set()
        inside = _rule(Counter(networks.values()), len(networks)) if len(networks) > 2 else None
        for device, network in networks.items():
            if device in off:
                found.append(Outlier(number, device, network, usual[device]))
            elif inside is not None and network != inside and usual.get(device) != network:
                found.append(Outlier(number, device, network, inside))
    return found


def _rule(counts: Counter[Network], size: int) -> Network | None:
    """The network of more than half; of one alone nothing can be said."""
    if not counts or size < 2:
        return None
    network, most = counts.most_common(1)[0]
    return network if 2 * most > size else None
