"""Real nodes on one machine: network, process, mount and host-name namespaces on a bridge, each with its own sshd.

    with Testbed(3) as bed:
        bed.nodes[0].exec(["hostname"])

``python -m tests.testbed up 3`` keeps one up for trying things by hand. Needs root, iproute2 and openssh-server; a
missing part is a TestbedError, never a skip.
"""

from tests.testbed.bed import Testbed
from tests.testbed.network import TestbedError
from tests.testbed.node import Node

__all__ = ["Node", "Testbed", "TestbedError"]
