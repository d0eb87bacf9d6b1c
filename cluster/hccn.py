"""What nodes say of their NPUs: one shell script a node, its answers as a transcript (``ostrain.ranktable``).

Nothing is changed on a node and nothing is left there. Every program has a time limit of its own: ``npu-smi`` has been
seen to hang in containers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cluster.backend import NodeError, PerNode
from cluster.local import LocalTransport
from cluster.transport import Transport, fan_out
from ostrain.plan import NodeAccess

LIMIT = 4 << 20  # bytes of a transcript; 16 devices make 20 kB
# POSIX sh. `ask` prints the command before its answer, errors included: they say why there is no address.
_SCRIPT = r"""
PATH=$PATH:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/local/Ascend/driver/tools
export PATH LC_ALL=C
limit=
command -v timeout >/dev/null 2>&1 && limit="timeout 10"
ask() { printf '\n$ %s\n' "$*"; $limit "$@" 2>&1 </dev/null; }
ask hostname
ask hostname -I
[ -r /etc/hccn.conf ] && ask cat /etc/hccn.conf
[ -s /etc/hccl_rootinfo.json ] && ask cat /etc/hccl_rootinfo.json
printf '\n$ ls /dev\n'
for path in /dev/davinci[0-9]*; do [ -e "$path" ] && echo "${path#/dev/}"; done
devices=$(for path in /dev/davinci[0-9]*; do [ -e "$path" ] && echo "${path#/dev/davinci}"; done)
[ -n "$devices" ] || devices=$(sed -n 's/^address_\([0-9][0-9]*\)=.*/\1/p' /etc/hccn.conf 2>/dev/null)
if command -v npu-smi >/dev/null 2>&1; then
    ask npu-smi info
    map=$($limit npu-smi info -m 2>&1 </dev/null)
    printf '\n$ npu-smi info -m\n%s\n' "$map"
    case "$map" in
    *Phy-ID*)
        printf '%s\n' "$map" | while read -r npu chip logic rest; do
            case "$npu$chip$logic" in *[!0-9]*|'') continue ;; esac
            ask npu-smi info -t spod-info -i "$npu" -c "$chip"
        done ;;
    esac
fi
if command -v hccn_tool >/dev/null 2>&1; then
    for device in $devices; do
        ask hccn_tool -i "$device" -ip -g
        [ -n "$WANT_IPV6" ] && ask hccn_tool -i "$device" -ip -inet6 -g
        ask hccn_tool -i "$device" -gateway -g
    done
fi
exit 0
"""


def gather(
    nodes: Mapping[str, NodeAccess],
    backend: str,
    *,
    ipv6: bool = False,
    timeout: float = 120.0,
    answered: Callable[[str], None] = lambda node: None,
) -> PerNode[str]:
    """Node -> transcript, all at once. backend: ``local`` or ``ssh``; ipv6: ask for IPv6 addresses, too.

    answered: called, from any thread, with each node that has been asked.
    """
    transports = {name: _transport(name, access, backend) for name, access in nodes.items()}
    script = (("WANT_IPV6=1\n" if ipv6 else "WANT_IPV6=\n") + _SCRIPT).encode()

    def one(transport: Transport) -> str:
        try:
            result = transport.run(["sh", "-s"], script, timeout=timeout)
        finally:
            transport.close()
            answered(transport.node)
        if result.returncode != 0:
            words = result.stderr.decode("utf-8", "replace").strip()[:200]
            raise NodeError(
                "protocol", "the node's facts cannot be read", node=transport.node,
                why=f"sh ended with {result.returncode}" + (f": {words}" if words else ""),
                next_step="log in to it and run `npu-smi info`, `hccn_tool -i 0 -ip -g`",
            )  # fmt: skip
        return result.stdout[:LIMIT].decode("utf-8", "replace")

    return fan_out(transports, one)


def _transport(name: str, access: NodeAccess, backend: str) -> Transport:
    if backend == "local":
        return LocalTransport(name)
    from cluster.ssh import SSHTransport  # paramiko is slow to import, and not needed for this machine

    return SSHTransport(name, access)
