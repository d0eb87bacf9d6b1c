"""Between the nodes: links of the NPUs, TLS, addresses, the way to the scheduler, ports."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ostrain.preflight.situation import Situation, odd_ones, output_of
from ostrain.preflight.verdict import Verdict, fail, ok
from ostrain.ranktable.text import listed


def link(situation: Situation) -> Iterator[Verdict]:
    """``hccn_tool -i N -link -g`` prints ``link status: UP``."""
    for name, facts in situation.told("devices").items():
        states = {int(number): output_of(told) for number, told in facts["link"].items()}
        down = {
            n: text for n, (text, _) in states.items() if not re.search(r"link status:\s*UP\b", text, re.IGNORECASE)
        }
        if down:
            whys = {states[number][1] or " ".join(text.split())[:100] for number, text in down.items()}
            step = f"hccn_tool -i {min(down)} -link_stat -g there; look at the cable, the module and the switch's port"
            yield fail(name, f"link of device {listed(sorted(down))} is not up", "; ".join(sorted(whys)), step)
        else:
            yield ok(name, f"{len(states)} of {len(states)} up")


def tls(situation: Situation) -> Iterator[Verdict]:
    """TLS has to be on or off on every rank alike, or HCCL ends with EI0014."""
    switches: dict[tuple[str, int], str] = {}
    for name, facts in situation.told("devices").items():
        for number, told in facts["tls"].items():
            match = re.search(r"tls switch\[(\d)\]", output_of(told)[0])
            if match:
                switches[name, int(number)] = "on" if match[1] == "1" else "off"
    common, odd = odd_ones({f"{node} {device}": value for (node, device), value in switches.items()})
    for name in situation.told("devices"):
        own = sorted(device for node, device in switches if node == name and f"{node} {device}" in odd)
        if own:
            state, word = switches[name, own[0]], 1 if common == "on" else 0
            step = f"hccn_tool -i {own[0]} -tls -s enable {word} there, as on the others"
            yield fail(name, f"TLS of device {listed(own)} is {state}", f"it is {common} elsewhere (EI0014)", step)
        else:
            yield ok(name, f"{common} everywhere" if common else "not told by hccn_tool")


def address(situation: Situation) -> Iterator[Verdict]:
    for name, facts in situation.told("network").items():
        own = situation.plan.node(name).address
        if facts["address"]:
            why = f"{own} is none of its addresses ({facts['address']}); msrun finds the first node by it"
            yield fail(name, f"{own} is not this node", why, "correct `address` in the inventory")
        elif facts["interface"]:
            step = "correct `interface` in the inventory"
            yield fail(name, "its network interface is not up", f"state: {facts['interface']}", step)
        else:
            yield ok(name, own)


def route(situation: Situation) -> Iterator[Verdict]:
    master = situation.plan.master_address
    for name, facts in situation.told("network").items():
        if facts["route"]:
            why = f"{master}: {facts['route']}"
            step = "look at routes and firewalls between the nodes, and at the first node's `address`"
            yield fail(name, "cannot reach the first node", why, step)
        else:
            yield ok(name, f"reaches {master}" if situation.plan.node(name).address != master else "is the first node")


def ports(situation: Situation) -> Iterator[Verdict]:
    for name, facts in situation.told("network").items():
        port = situation.plan.master_port
        if facts["port"]:
            what = f"port {port} of {situation.plan.master_address} cannot be used"
            yield fail(name, what, facts["port"], "name another master_port, or `auto` to have one picked")
        elif facts["taken"]:
            why = "HCCL listens on 60000 to 60015 (EI0019 when it cannot)"
            step = "sysctl -w net.ipv4.ip_local_reserved_ports=60000-60015 there, and end what listens"
            yield fail(name, f"port {listed(facts['taken'])} is taken", why, step)
        else:
            yield ok(name, f"port {port} is free" if port and name == situation.plan.nodes[0].name else "free")
