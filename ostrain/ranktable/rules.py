"""Every rule a rank table is checked by: HCCL's own, with the error code a run would end with, and ours.

HCCL's rules follow its sources (``topoinfo_ranktableParser``, ``topoinfo_ranktableConcise``, ``config``,
``rank_table_info``, ``rank_level_info``, ``address_info``) and the HCCL guide's pages on rank tables. Newer CANN
reports a table's content as EI0014, older CANN reports everything as EI0004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
_CONTENT = ("EI0014", "EI0004")
_FILE = ("EI0004",)


@dataclass(frozen=True)
class Rule:
    """level: error = HCCL refuses the table or the ranks never connect; warning = accepted, but slower or a likely
    mistake; note = worth knowing. codes: of HCCL, newest CANN first; says: its words."""

    name: str
    level: Level
    codes: tuple[str, ...]
    meaning: str
    next_step: str
    says: str = ""

    @property
    def hccl(self) -> str:
        """``EI0014 (older CANN: EI0004) "words"``, or nothing where HCCL has no say."""
        if not self.codes:
            return f'"{self.says}"' if self.says else ""
        older = f" (older CANN: {', '.join(self.codes[1:])})" if len(self.codes) > 1 else ""
        return f"{self.codes[0]}{older}" + (f' "{self.says}"' if self.says else "")


def _error(name: str, meaning: str, next_step: str, says: str = "", codes: tuple[str, ...] = _CONTENT) -> Rule:
    return Rule(name, "error", codes, meaning, next_step, says)


def _warning(name: str, meaning: str, next_step: str, says: str = "") -> Rule:
    return Rule(name, "warning", (), meaning, next_step, says)


def _note(name: str, meaning: str, next_step: str) -> Rule:
    return Rule(name, "note", (), meaning, next_step)


_FROM_NODE = "`ostrain ranktable make` writes what the node itself says"
_RENUMBER = "`ostrain ranktable merge FILE` numbers the ranks anew"

_FILE_RULES = (
    _error("file_name", "the file's name ends in .json", "rename the file", "is not a valid real path", _FILE),
    _error("json", "the file is JSON in UTF-8", "correct the place shown", "Invalid ranktable format.", _FILE),
    _warning("duplicate_key", "a key stands once in an object; HCCL reads the last", "delete one of the two"),
    _error("version", "version is 1.0, 1.2 or 2.0", "write 1.0 (910A, A2), 1.2 (A3) or 2.0 (950)",
           "Value … for ranktable variable version is invalid. Expected value: a valid version number."),
    _error("missing", "every key HCCL needs is there", "add it", "json object has no property"),
    _error("type", "scalars are strings in 1.0 and 1.2, whole numbers in 2.0", "write the value as it is asked for",
           "json object property value is not string!"),
    _error("empty", "lists and names that are needed hold something", "fill it in", "size is zero"),
    _error("number", "ids, counts and ports are decimal digits", "write digits only",
           "The rankid in ranktable is invalid. Please check ranktable"),
    _error("status", "status is completed", 'wait until whoever fills it in is done, or write "completed"',
           "waiting for ranktable load complete... (30 minutes, then a timeout)", _FILE),
)  # fmt: skip
_SERVER_RULES = (
    _error("server_count", "server_count is the number of servers listed", "write the number of servers",
           "The 'server_count' in ranktable is invalid."),
    _error("server_id", "server_id has 1 to 64 characters", "give it a shorter name", "length is too long"),
    _error("duplicate_server", "every server is listed once", "give the devices of one server in one entry",
           "server_id is already exist"),
    _error("host_ip", "host_ip is an address", "write the address of the server's network card"),
    _warning("host_ip_some", "all servers have a host_ip or none has", "give all of them theirs",
             "hostIp config between ranks is different"),
    _error("device_id", "device_id is one of the product's physical ids", "write N of the node's /dev/davinciN",
           "device_id is invalid"),
    _error("duplicate_device", "every device of a server is listed once", "give each rank a device of its own",
           'Value for ranktable variable "Device Id of server Id" is invalid. Expected value: is unique'),
    _error("card_count", "910A: 1, 2, 4 or 8 devices a server", "use 1, 2, 4 or 8 devices of every server",
           "device / server is invalid"),
    _error("card_ring", "910A: fewer than 8 devices lie within 0-3 or 4-7", "use devices of one half"),
    Rule("unequal_cards", "warning", ("EI0014",), "all servers have as many devices; 910A refuses others",
         "list as many devices of every server",
         "Expected value: is that number of devices under each server node is the same"),
    _warning("missing_card", "a server has the devices that the others have", "add it, or leave it out everywhere"),
    _error("expected_cards", "every server has the number of devices asked for", "add the missing ones", "", ()),
    _warning("half_card", "A3: both dies of a card take part", "list the other die of the card, too"),
)  # fmt: skip
_ADDRESS_RULES = (
    _error("ip", "device_ip is an IPv4 or IPv6 address, or several with commas", _FROM_NODE,
           "The ip in ranktable is not a valid ip address"),
    _error("ip_missing", "device_ip is there when there are several servers", _FROM_NODE,
           "'device_ip' is not set correctly, must be set when multi Server"),
    _error("ip_unusable", "device_ip can be the address of a network card", _FROM_NODE,
           "the IP address in the ranktable is inconsistent with the IP address of the network adapter"),
    _error("duplicate_ip", "an address belongs to one device", "find out with `hccn_tool -i N -ip -g` whose it is",
           "The IP is used repeatedly."),
    _error("ip_count", "every device has as many addresses", "give all devices the same number of addresses",
           "device size neq first device size"),
    _error("ip_family", "all addresses are IPv4, or all are IPv6", "use one kind of address",
           "device ip family is not same as others", ("EI0014", "EI0001")),
    _error("subnet", "devices that talk to each other share a subnet, or have a gateway", "correct the device's "
           "address or netmask (`hccn_tool -i N -ip -s address A netmask M`)", "wait socket establish timeout",
           ("EI0006",)),
    _warning("other_subnet", "servers lie in the same subnets", "make sure the networks are routed"),
    _error("port", "ports are 1 to 65535", "leave it out: HCCL has a default", "not a valid port"),
    _error("port_clash", "a network card's ports are different ones", "use different ports"),
    _warning("port_reserved", "ports are above 1023", "use a port above 1023"),
    _error("backup_ip", "A3: backup_device_ip is the address of the card's other die", "write the device_ip of the "
           "other die", 'Expected value "is device_ip another Die under the same NPU"'),
    _error("not_the_nodes", "the table says what the nodes say", "make the table again: `ostrain ranktable make`",
           "the IP address in the ranktable is inconsistent with the IP address of the network adapter"),
)  # fmt: skip
_RANK_RULES = (
    _error("duplicate_rank", "a rank is given once", _RENUMBER,
           "The 'rank_id' in the ranktable must start from 0 or it is used repeatedly"),
    _error("rank_gap", "ranks are 0 to n-1 without holes", _RENUMBER,
           "Value … for ranktable variable rank_id is invalid. Expected value: is less than the communication size "
           "and must be unique."),
    _error("rank_interleaved", "the ranks of a server follow each other", _RENUMBER),
    _note("rank_order", "ranks rise with the order of servers and devices", "sort them where it is unintended: "
          "neighbours in rank should be neighbours on the machine"),
)  # fmt: skip
_POD_RULES = (
    _error("super_device_id", "1.2: super_device_id is a number, there for all devices", "write the SDID of "
           "`npu-smi info -t spod-info -i NPU -c CHIP`", "super_device_id is invalid"),
    _error("duplicate_super_device", "super_device_id is unique in its super pod", "write each die's own SDID",
           "superDeviceId in superPod is already exist."),
    _error("super_pod_id", "super_pod_id has 1 to 64 characters", "name the super pod",
           "the 'super_pod_id' in the ranktable is invalid or empty"),
    _error("duplicate_super_pod", "every super pod is listed once", "list its servers in one entry",
           "super_pod_id is already exist"),
    _error("super_pod_server", "super_pod_list names the servers of server_list, each once", "correct the server_id",
           "the 'server_id' in the ranktable 'super_pod_list' is invalid or not found in server_list"),
    _error("super_pod_total", "every server is in a super pod", "add it to its super pod",
           "serverNum in super_pod_list and serverNum in server_list are inconsistent"),
    _error("super_pod_order", "servers of a super pod are listed one after the other", "sort server_list by super pod"),
    _warning("super_pod_unequal", "super pods have as many servers; older CANN refuses others", "use as many of each",
             "serverNum in superPodId is not equal to serverNum"),
    _warning("no_super_pods", "1.2 has super pods; without, HCCL goes the slow way of 1.0", "add super_pod_list and "
             "super_device_id, or write version 1.0"),
)  # fmt: skip
_V2_RULES = (
    _error("rank_count", "2.0: rank_count is the number of ranks listed, 1 to 65536", "write the number of ranks",
           "rankCount is equal to rankSize"),
    _error("range", "2.0: numbers lie within their bounds", "write a number within the bounds"),
    _error("replaced", "2.0: at most one spare (local_id 64), its replaced_local_id used by nobody else",
           "correct replaced_local_id", "multiple replaced rank is configured"),
    _error("level_order", "2.0: net_layer starts at 0 and rises", "sort the levels"),
    _error("level_unequal", "2.0: ranks of one net_instance_id have as many addresses in a layer",
           "list the missing addresses", "the size of rank_addrs with the same id is different"),
    _error("net_type", "2.0: layer 0 is TOPO_FILE_DESC, the others that or CLOS", "correct it"),
    _error("length", "2.0: lists and names are no longer than HCCL takes", "shorten it", "length is out of range"),
    _error("address", "2.0: addr is what addr_type says", "write the EID or address that `hccn_tool` prints",
           "Expected value: A valid EID / IPv4 address / IPv6 address"),
    _error("address_port", "2.0: ports are DIE/PORT, one address each in a layer", "correct the port"),
)  # fmt: skip
_GROUP_RULES = (
    _error("group_count", "old ModelArts format: counts are those of the lists", "write the number of entries"),
    _error("pod_name", "old ModelArts format: pod_name ends in -N, by which instances are ordered", "correct the name"),
    _note("group_format", "the old ModelArts format has no ranks: the platform's start code converts it",
          "`ostrain ranktable convert FILE --to 1.0`"),
)  # fmt: skip

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        *_FILE_RULES, *_SERVER_RULES, *_ADDRESS_RULES, *_RANK_RULES, *_POD_RULES, *_V2_RULES, *_GROUP_RULES
    )
}  # fmt: skip


def rules_table() -> str:
    """The table of docs/ranktables.md."""
    rows = ["| rule | level | HCCL | what holds |", "|---|---|---|---|"]
    rows += [f"| {r.name} | {r.level} | {', '.join(r.codes) or '-'} | {r.meaning} |" for r in RULES.values()]
    return "\n".join(rows)
