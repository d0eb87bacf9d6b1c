"""Is a table one that HCCL takes, and one to be happy with? Every rule of ``rules.py``, all problems at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ostrain.ranktable.document import Document
from ostrain.ranktable.findings import Findings, quoted
from ostrain.ranktable.groups import Instance, check_groups
from ostrain.ranktable.pods import check_pods
from ostrain.ranktable.products import PRODUCTS, Product
from ostrain.ranktable.ranks import check_ranks
from ostrain.ranktable.servers import Server, check_expected, check_servers, named
from ostrain.ranktable.subnets import Network, Outlier, network_of, outliers
from ostrain.ranktable.version2 import Rank, check_version2
from ostrain.ranktable.walk import Object, Walk

Kind = Literal["1.0", "1.2", "2.0", "group"]
VERSIONS: tuple[Kind, ...] = ("1.0", "1.2", "2.0")
_LISTS = ("server_list", "rank_list", "group_list")


@dataclass(frozen=True)
class Expected:
    """What the checker is told beside the table. prefix: of the devices' networks, for tables do not say it."""

    product: Product | None = None
    devices_per_node: int | None = None
    prefix: int | None = None


@dataclass
class Report:
    """kind: None where even that cannot be told. servers, pods: of 1.x; ranks: of 2.0; instances: of groups."""

    findings: Findings
    kind: Kind | None = None
    product: Product | None = None
    servers: list[Server] = field(default_factory=list)
    pods: dict[str, str] = field(default_factory=dict)
    ranks: list[Rank] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.findings.errors

    @property
    def devices(self) -> int:
        listed = sum(len(server.devices) for server in self.servers)
        return listed + len(self.ranks) + sum(len(instance.devices) for instance in self.instances)

    @property
    def nodes(self) -> int:
        """Servers; of 2.0, as far as the innermost network layer tells them apart."""
        of_ranks = {rank.server for rank in self.ranks}
        of_groups = {instance.server_id for instance in self.instances}
        return len(self.servers) + len(of_ranks) + len(of_groups)


def check(document: Document, expected: Expected = Expected()) -> Report:
    """All findings of a table. Linear in its size; never raises for what a file may hold."""
    report = check_data(document.data, expected)
    if document.has_twice:
        for path, _ in document.places.twice:
            report.findings.add("duplicate_key", path, f"{quoted(path[-1])} stands twice here; HCCL reads the last")
    return report


def check_data(data: Any, expected: Expected = Expected()) -> Report:
    """The same for data without a text."""
    report = Report(Findings(), product=expected.product)
    walk = Walk(report.findings)
    if not isinstance(data, dict):
        report.findings.add("json", (), f"the file holds {quoted(data)}; a rank table is an object {{…}}")
        return report
    if data.get("status") == "initializing" and data.keys().isdisjoint(_LISTS):
        _status(walk, data, None)  # what a ring controller begins with: HCCL waits and reads nothing else yet
        return report
    report.kind = _kind(walk, data, expected.product)
    _status(walk, data, report.kind)
    if report.kind == "2.0":
        report.ranks = check_version2(walk, data)
    elif report.kind == "group":
        report.instances = check_groups(walk, data)
        report.findings.add("group_format", ("group_list",), "a table of the old ModelArts format", on_key=True)
    elif report.kind is not None:
        _check_version1(walk, data, report, expected)
    return report


def _kind(walk: Walk, data: Object, product: Product | None) -> Kind | None:
    if "version" not in data:
        if "group_list" in data:
            return "group"
        walk.missing(data, (), "version", next_step=f'add "version": "{product.version if product else "1.0"}"')
        return "2.0" if "rank_list" in data else "1.0" if "server_list" in data else None
    version = data["version"]
    if not isinstance(version, str):
        walk.text(data, (), "version")
        version = str(version)
    if version not in VERSIONS:
        walk.findings.add("version", ("version",), f"version {quoted(version)} is none of {', '.join(VERSIONS)}")
        return "2.0" if "rank_list" in data else "1.0" if "server_list" in data else None
    kind: Kind = next(known for known in VERSIONS if known == version)
    if product and (product.version == "2.0") != (kind == "2.0"):
        text = f"version {kind} on {product.title}, which reads {product.version}"
        walk.findings.add("version", ("version",), text, next_step="make the table for this product")
    return kind


def _status(walk: Walk, data: Object, kind: Kind | None) -> None:
    status = walk.text(data, (), "status", needed=kind != "2.0")
    if status is not None and status != "completed":
        level: Literal["warning"] | None = "warning" if kind == "2.0" else None
        walk.findings.add("status", ("status",), f'status is {quoted(status)}, not "completed"', level=level)


def _check_version1(walk: Walk, data: Object, report: Report, expected: Expected) -> None:
    product = expected.product or (PRODUCTS["A3"] if report.kind == "1.2" else None)
    walk.count(data, (), "server_count", "server_list", rule="server_count", needed=report.kind == "1.0")
    report.servers = check_servers(walk, data, product, _ip_needed(data, report.kind))
    if report.kind == "1.2":
        report.pods = check_pods(walk, data, report.servers)
    check_ranks(walk.findings, report.servers)
    if expected.devices_per_node is not None:
        check_expected(walk, report.servers, expected.devices_per_node)
    if expected.prefix is not None:
        check_subnets(walk.findings, report.servers, networks(report.servers, expected.prefix))


def _ip_needed(data: Object, kind: Kind | None) -> bool:
    """Inside a super pod ranks meet over HCCS; between servers or super pods they need addresses."""
    between = data.get("super_pod_list") if kind == "1.2" else None
    groups = between if isinstance(between, list) else data.get("server_list")
    return isinstance(groups, list) and len(groups) > 1


def networks(servers: Iterable[Server], prefix: int) -> list[dict[int, Network]]:
    """Device id -> its network, server by server."""
    return [
        {d.device_id: network_of(d.ips[0], prefix) for d in server.devices if d.device_id is not None and d.ips}
        for server in servers
    ]


def check_subnets(findings: Findings, servers: Sequence[Server], found: Sequence[dict[int, Network]]) -> None:
    for outlier in outliers(found):
        server = servers[outlier.server]
        device = next(device for device in server.devices if device.device_id == outlier.device)
        path = (*device.path, "device_ip")
        if outlier.whole_server:
            text = f"server {server.name} lies in {outlier.network}, most servers in {outlier.expected}"
            findings.add("other_subnet", path, text)
        else:
            findings.add("subnet", path, subnet_text(named(servers, device), outlier))


def subnet_text(owner: str, outlier: Outlier) -> str:
    return f"{owner} lies in {outlier.network}, the devices it talks to in {outlier.expected}"
