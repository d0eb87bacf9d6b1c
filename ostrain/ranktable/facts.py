"""What is known of a node: its devices with their addresses, and what stands in the way of using them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ostrain.ranktable import hccn, npu_smi
from ostrain.ranktable.document import Document, parse
from ostrain.ranktable.products import Product, by_chip
from ostrain.ranktable.transcript import Section, sections
from ostrain.ranktable.walk import Address, address, is_digits
from ostrain.spec.document import DocumentError
from ostrain.spec.problems import Source

_GOOD_HEALTH = ("", "OK", "NA", "-")


@dataclass
class DeviceFacts:
    """A device of a node. addresses: IP version -> address; no_address: what hccn_tool said instead of one."""

    device_id: int
    addresses: dict[int, hccn.NicAddress] = field(default_factory=dict)
    conf: dict[int, hccn.NicAddress] = field(default_factory=dict)
    chip: npu_smi.Chip | None = None
    pod: npu_smi.PodPlace | None = None
    no_address: str = ""

    @property
    def is_ill(self) -> bool:
        return self.chip is not None and self.chip.health not in _GOOD_HEALTH


@dataclass
class NodeFacts:
    """A node. present: devices that npu-smi or /dev lists, None where neither was asked; root_info: of the 950."""

    name: str
    server_id: str
    host_ip: Address | None = None
    devices: dict[int, DeviceFacts] = field(default_factory=dict)
    present: frozenset[int] | None = None
    product: Product | None = None
    root_info: Document | None = None
    root_info_problem: str = ""


@dataclass
class _Answers:
    """A transcript's sections by what they are about."""

    conf: str = ""
    tool: dict[tuple[int, int], str] = field(default_factory=dict)
    gateways: dict[tuple[int, int], Address] = field(default_factory=dict)
    info: list[npu_smi.Chip] = field(default_factory=list)
    mapped: list[npu_smi.Chip] = field(default_factory=list)
    pods: dict[tuple[int, int], npu_smi.PodPlace] = field(default_factory=dict)
    physical: bool = False
    dev: set[int] = field(default_factory=set)
    addresses: list[Address] = field(default_factory=list)
    root_info: str | None = None


def node_facts(name: str, transcript: str, server_id: str = "") -> NodeFacts:
    """The facts a transcript holds. server_id: the node's address as others reach it; default: its own first one."""
    answers = _Answers()
    for section in sections(transcript):
        _take(answers, section)
    reachable = [ip for ip in answers.addresses if not (ip.is_loopback or ip.is_link_local)]
    host = address(server_id) or (reachable[0] if reachable else None)
    facts = NodeFacts(name, server_id or str(host or name), host)
    chips = npu_smi.joined(answers.info, answers.mapped)
    facts.devices = _devices(answers, chips)
    listed = {chip.device for chip in chips} or answers.dev
    facts.present = frozenset(listed) if listed else None
    facts.product = next((found for chip in chips if (found := by_chip(chip.name, answers.physical))), None)
    if answers.root_info is not None:
        _root_info(facts, answers.root_info)
    return facts


def _take(answers: _Answers, section: Section) -> None:
    program, text = section.words[0], section.output
    if program == "cat" and section.words[-1].endswith("hccn.conf"):
        answers.conf = text
    elif program == "cat" and section.words[-1].endswith("hccl_rootinfo.json"):
        answers.root_info = text if text.strip() else None
    elif program == "hccn_tool":
        _take_tool(answers, section)
    elif program == "npu-smi":
        _take_smi(answers, section)
    elif program == "ls":
        words = (word.rsplit("/", 1)[-1].removeprefix("davinci") for word in text.split() if "davinci" in word)
        answers.dev |= {int(word) for word in words if is_digits(word)}
    elif program == "hostname" and "-I" in section.words:
        answers.addresses = [ip for word in text.split() if (ip := address(word)) is not None]


def _take_tool(answers: _Answers, section: Section) -> None:
    device = section.option("-i")
    if not is_digits(device):
        return
    key = (6 if "-inet6" in section.words else 4, int(device))
    if "-gateway" in section.words:
        gateway = hccn.parse_gateway(section.output)
        if gateway is not None:
            answers.gateways[gateway.version, key[1]] = gateway
    elif "-ip" in section.words:
        answers.tool[key] = section.output


def _take_smi(answers: _Answers, section: Section) -> None:
    about, npu, chip = section.option("-t"), section.option("-i"), section.option("-c") or "0"
    if about == "spod-info" and is_digits(npu) and is_digits(chip):
        place = npu_smi.parse_pod(section.output)
        if place is not None:
            answers.pods[int(npu), int(chip)] = place
    elif section.words[1:] == ("info", "-m"):
        answers.mapped = npu_smi.parse_map(section.output)
        answers.physical = answers.physical or "Phy-ID" in section.output
    elif section.words[1:] == ("info",):
        answers.info, physical = npu_smi.parse_info(section.output)
        answers.physical = answers.physical or physical


def _devices(answers: _Answers, chips: list[npu_smi.Chip]) -> dict[int, DeviceFacts]:
    conf = hccn.parse_conf(answers.conf)
    numbers = {device for found in conf.values() for device in found}
    numbers |= {chip.device for chip in chips} | answers.dev
    numbers |= {device for version, device in answers.tool if hccn.parse_tool(answers.tool[version, device])}
    by_device = {chip.device: chip for chip in chips}
    found = {}
    for number in sorted(numbers):
        facts = DeviceFacts(number, chip=by_device.get(number))
        for version in (4, 6):
            output = answers.tool.get((version, number), "")
            written = conf[version].get(number)
            nic = hccn.merged(hccn.parse_tool(output), written, answers.gateways.get((version, number)))
            if nic is not None:
                facts.addresses[nic.ip.version] = nic
            if written is not None:
                facts.conf[version] = written
            if version == 4 and nic is None:
                facts.no_address = hccn.first_words(output)
        if facts.chip is not None:
            facts.pod = answers.pods.get((facts.chip.npu, facts.chip.chip))
        found[number] = facts
    return found


def _root_info(facts: NodeFacts, text: str) -> None:
    try:
        facts.root_info = parse(Source(f"{facts.name}:hccl_rootinfo.json", text))
    except DocumentError as error:
        facts.root_info_problem = f"{error.problems[0].mark}: {error.problems[0].message}"
