"""Keep a testbed up for trying things by hand.

python -m tests.testbed up N [--npus K]     make one and leave it up
python -m tests.testbed down [ID…]          remove those, or all that ``up`` made
"""

from __future__ import annotations

import argparse
import shlex
import sys

from tests.testbed.bed import Testbed
from tests.testbed.network import TestbedError, base_lock, clear_leftovers, destroy, folders, read_owner, require_parts


def up(count: int, npus: int) -> None:
    bed = Testbed(count, npus=npus, keep=True)
    inventory = bed.folder / "testbed.yaml"
    inventory.write_text(bed.inventory())
    print(f"# testbed {bed.id}: {count} nodes at {bed.nodes[0].address}…; to use it here:")
    for name, value in bed.environment().items():
        print(f"export {name}={shlex.quote(value)}" if value else f"unset {name}")
    print(f"# inventory: {inventory}")
    print(f"# try: ssh -F {bed.home}/.ssh/config {bed.nodes[0].name} hostname")
    print(f"#      ostrain submit JOB --set cluster={inventory}")
    print(f"# then: python -m tests.testbed down {bed.id}")


def down(ids: list[str]) -> None:
    require_parts()
    with base_lock():
        clear_leftovers()
        kept = {folder.name: folder for folder in folders() if read_owner(folder).get("keep")}
        for bed_id in ids or list(kept):
            if bed_id not in kept:
                raise TestbedError(f"no testbed {bed_id}; there are: {', '.join(kept) or 'none'}")
            destroy(kept[bed_id])
            print(f"removed {bed_id}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.testbed", description="Nodes as network namespaces")
    commands = parser.add_subparsers(dest="command", required=True)
    upper = commands.add_parser("up", help="make a testbed and leave it up")
    upper.add_argument("count", type=int)
    upper.add_argument("--npus", type=int, default=0, help="stand-in NPUs a node")
    commands.add_parser("down", help="remove testbeds").add_argument("ids", nargs="*")
    options = parser.parse_args()
    try:
        if options.command == "up":
            up(options.count, options.npus)
        else:
            down(options.ids)
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
