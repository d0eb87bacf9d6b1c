"""Checks of ``server_list``, versions 1.0 and 1.2: servers, devices, addresses, ports. Ranks are in ``ranks.py``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ostrain.ranktable.findings import quoted
from ostrain.ranktable.locate import Path
from ostrain.ranktable.products import PRODUCTS, Product
from ostrain.ranktable.walk import Address, Object, Walk, address

MAX_DEVICE = max(product.max_device for product in PRODUCTS.values() if product.version != "2.0")
_ADDRESS_KEYS = ("device_ip", "device_port", "backup_device_ip", "backup_device_port", "host_port")


@dataclass
class Device:
    """A device as far as it could be read; None and () where it could not."""

    path: Path
    server: int
    data: Object
    device_id: int | None = None
    rank_id: int | None = None
    ips: tuple[Address, ...] = ()
    super_device_id: int | None = None


@dataclass
class Server:
    path: Path
    data: Object
    server_id: str | None = None
    host_ip: Address | None = None
    devices: list[Device] = field(default_factory=list)

    @property
    def name(self) -> str:
        return quoted(self.server_id or "?")

    @property
    def ids(self) -> list[int]:
        return [device.device_id for device in self.devices if device.device_id is not None]


def check_servers(walk: Walk, data: Object, product: Product | None, ip_needed: bool) -> list[Server]:
    """Every server with its devices, as far as they can be read. ip_needed: without device_ip ranks cannot meet."""
    servers = [_server(walk, number, *entry) for number, entry in enumerate(walk.entries(data, (), "server_list"))]
    _unique_servers(walk, servers)
    _unique_ips(walk, servers, ip_needed)
    for server in servers:
        _devices(walk, server, product)
        _ports(walk, server)
    _unequal(walk, servers, product)
    return servers


def _server(walk: Walk, number: int, path: Path, data: Object) -> Server:
    server = Server(path, data, walk.name(data, path, "server_id", 64, "server_id"))
    host = walk.text(data, path, "host_ip", needed=False)
    if host is not None:
        server.host_ip = address(host)
        if server.host_ip is None:
            walk.findings.add("host_ip", (*path, "host_ip"), f"host_ip {quoted(host)} is no IPv4 or IPv6 address")
    for where, entry in walk.entries(data, path, "device"):
        server.devices.append(_device(walk, number, where, entry))
    return server


def _device(walk: Walk, server: int, path: Path, data: Object) -> Device:
    device = Device(path, server, data)
    device.device_id = walk.number(data, path, "device_id", rule="device_id")
    device.rank_id = walk.number(data, path, "rank_id")
    device.ips = read_ips(walk, data, path, "device_ip")
    if not data.keys().isdisjoint(_ADDRESS_KEYS[1:]):
        for key in ("device_port", "backup_device_port", "host_port"):
            walk.port(data, path, key)
        read_ips(walk, data, path, "backup_device_ip")
    return device


def read_ips(walk: Walk, data: Object, path: Path, key: str) -> tuple[Address, ...]:
    """The addresses of a comma list; an empty string is none."""
    text = walk.text(data, path, key, needed=False)
    found = []
    for word in (text or "").removesuffix(",").split(",") if text else ():
        ip = address(word) if "%" not in word else None
        if ip is None:
            walk.findings.add("ip", (*path, key), f"{key} {quoted(word)} is not an IPv4 or IPv6 address")
        elif ip.is_unspecified or ip.is_loopback or ip.is_multicast or str(ip) == "255.255.255.255":
            walk.findings.add("ip_unusable", (*path, key), f"{key} {ip} cannot be the address of a network card")
        else:
            found.append(ip)
    return tuple(found)


def _unique_servers(walk: Walk, servers: list[Server]) -> None:
    first: dict[str, int] = {}
    for number, server in enumerate(servers):
        if server.server_id is None:
            continue
        earlier = first.setdefault(server.server_id, number)
        if earlier != number:
            text = f"server_id {server.name} is that of entry {earlier + 1} of server_list, too"
            walk.findings.add("duplicate_server", (*server.path, "server_id"), text)
    having = [server for server in servers if "host_ip" in server.data]
    if having and len(having) < len(servers):
        lacking = next(server for server in servers if "host_ip" not in server.data)
        text = f"server {lacking.name} has no host_ip, {len(having)} of {len(servers)} servers have one"
        walk.findings.add("host_ip_some", lacking.path, text)


def _unique_ips(walk: Walk, servers: list[Server], ip_needed: bool) -> None:
    owners: dict[Address, Device] = {}
    hosts = {ip: server for server in servers for ip in (server.host_ip, address(server.server_id or "")) if ip}
    devices = [device for server in servers for device in server.devices]
    for device in devices:
        where = (*device.path, "device_ip")
        own: set[Address] = set()
        for ip in device.ips:
            owner = owners.setdefault(ip, device)
            twice = ip in own
            own.add(ip)
            if owner is not device or twice:
                text = f"device_ip {ip} is that of {named(servers, owner)}, too"
                walk.findings.add("duplicate_ip", where, text)
            if ip in hosts:
                text = f"device_ip {ip} is the address of the server {hosts[ip].name} itself, not of an NPU's card"
                walk.findings.add("ip_unusable", where, text)
        if not device.ips and ip_needed and device.data.get("device_ip", "") == "":
            text = f"{named(servers, device)} has no device_ip; ranks of several servers cannot meet without"
            walk.findings.add("ip_missing", where if "device_ip" in device.data else device.path, text)
    _alike(walk, servers, devices, ip_needed)


def _alike(walk: Walk, servers: list[Server], devices: list[Device], ip_needed: bool) -> None:
    """As many addresses on all devices, of one family."""
    having = [device for device in devices if device.ips]
    counts = Counter(len(device.ips) for device in having)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = next(device for device in having if len(device.ips) != usual)
        text = f"{named(servers, odd)} has {len(odd.ips)} addresses, most devices have {usual}"
        walk.findings.add("ip_count", (*odd.path, "device_ip"), text)
    families = Counter(ip.version for device in having for ip in device.ips)
    if len(families) > 1:
        usual = families.most_common(1)[0][0]
        odd = next(device for device in having if any(ip.version != usual for ip in device.ips))
        text = f"the address of {named(servers, odd)} is IPv{10 - usual}, most are IPv{usual}"
        walk.findings.add("ip_family", (*odd.path, "device_ip"), text)
    lacking = next((device for device in devices if device.data.get("device_ip", "") == ""), None)
    if having and lacking is not None and not ip_needed:
        text = f"{named(servers, lacking)} has no address, others have one"
        walk.findings.add("ip_count", lacking.path, text)


def named(servers: Sequence[Server], device: Device) -> str:
    return f"device {'?' if device.device_id is None else device.device_id} of server {servers[device.server].name}"


def _devices(walk: Walk, server: Server, product: Product | None) -> None:
    limit = product.max_device if product else MAX_DEVICE
    seen: set[int] = set()
    for device in server.devices:
        number, where = device.device_id, (*device.path, "device_id")
        if number is None:
            continue
        if number > limit:
            on = product.title if product else "910B and A3"
            walk.findings.add("device_id", where, f"device_id {number} is more than {limit}, the highest of {on}")
        if number in seen:
            text = f"device {number} of server {server.name} is listed twice"
            walk.findings.add("duplicate_device", where, text)
        if number <= limit:
            seen.add(number)
    if product and product.counts:
        _ring(walk, server, product, seen)
    if product and product.dies > 1:
        for device in server.devices:
            if device.device_id is not None and device.device_id ^ 1 not in seen:
                text = f"device {device.device_id} of server {server.name} without {device.device_id ^ 1} of its card"
                walk.findings.add("half_card", (*device.path, "device_id"), text)


def _ring(walk: Walk, server: Server, product: Product, seen: set[int]) -> None:
    """910A: four devices each form a ring; only all eight cross it."""
    if len(server.devices) not in product.counts:
        text = f"server {server.name} has {len(server.devices)} devices; {product.title} takes 1, 2, 4 or 8"
        walk.findings.add("card_count", server.path, text)
    elif len(seen) < 8 and len({number // 4 for number in seen}) > 1:
        text = f"devices {', '.join(map(str, sorted(seen)))} of server {server.name} lie in both rings of four"
        walk.findings.add("card_ring", server.path, text)


def _ports(walk: Walk, server: Server) -> None:
    """host_port differs within a server; a card used by two dies has two ports."""
    hosts: set[str] = set()
    dies = {device.device_id: device for device in server.devices}
    main = {ip: d.data.get("device_port") for d in server.devices for ip in d.ips if "device_port" in d.data}
    for device in server.devices:
        port = device.data.get("host_port")
        if isinstance(port, str):
            if port in hosts:
                text = f"host_port {quoted(port)} of server {server.name} is given twice"
                walk.findings.add("port_clash", (*device.path, "host_port"), text)
            hosts.add(port)
        backup, lent = device.data.get("backup_device_ip"), device.data.get("backup_device_port")
        ip = address(backup) if isinstance(backup, str) else None
        if ip is None:
            continue
        if isinstance(lent, str) and main.get(ip) == lent:
            text = f"{ip} has port {quoted(lent)} as a card of its own and as a backup"
            walk.findings.add("port_clash", (*device.path, "backup_device_port"), text)
        other = dies.get(device.device_id ^ 1) if device.device_id is not None else None
        _sibling(walk, device, other, ip)


def _sibling(walk: Walk, device: Device, other: Device | None, backup: Address) -> None:
    if other is not None and backup not in other.ips:
        text = f"backup_device_ip {backup} is not the address of device {other.device_id}, the other die of the card"
        walk.findings.add("backup_ip", (*device.path, "backup_device_ip"), text)


def _unequal(walk: Walk, servers: list[Server], product: Product | None) -> None:
    """As many devices everywhere: HCCL refuses others on 910A, and is slow with them elsewhere."""
    servers = [server for server in servers if server.devices]  # an empty list is another rule's
    counts = Counter(len(server.devices) for server in servers)
    if len(counts) < 2:
        return
    refused = bool(product and product.counts)
    usual = max(counts, key=lambda size: (counts[size], size))
    most = max(counts)
    full = [set(server.ids) for server in servers if len(server.devices) == most]
    everywhere = set.intersection(*full)
    for server in servers:
        size = len(server.devices)
        if size != usual:
            text = f"server {server.name} has {size} devices, {counts[usual]} of {len(servers)} servers have {usual}"
            text += "" if refused else "; 910A refuses that, A2 and A3 run slower"
            walk.findings.add("unequal_cards", server.path, text, level="error" if refused else None)
        lacking = sorted(everywhere - set(server.ids)) if size < most else []
        if lacking and server.ids:
            text = f"server {server.name} lacks device {', '.join(map(str, lacking))}, which the full servers have"
            walk.findings.add("missing_card", server.path, text, level="error" if refused else None)


def check_expected(walk: Walk, servers: list[Server], expected: int) -> None:
    """Every server has exactly ``expected`` devices."""
    for server in servers:
        if len(server.devices) != expected:
            lacking = sorted(set(range(expected)) - set(server.ids))
            text = f"server {server.name} has {len(server.devices)} devices, not {expected}"
            text += f"; of 0 to {expected - 1} it lacks {', '.join(map(str, lacking))}" if lacking else ""
            walk.findings.add("expected_cards", server.path, text)
