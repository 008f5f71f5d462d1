"""The interfaces plugin in the daemon: what is in the kernel follows the links of the host, whatever happens to them."""

import itertools
import re

import pytest

from lab import DENIED4, Lab
from machine import eventually
from traffic import udp_exchange

BLOCK_ALL, ALLOWLIST, DENYLIST = 0, 1, 2

CONFIG = """
[plugin.taps]
library = "interfaces"
match   = ["tap*", "vm-{tenant}-{nic}", "h1"]
exclude = ["tap-mgmt*"]
labels  = { class = "vm", port = "$bridge" }

[[wire]]
targets = { discovered_by = "taps", labels = { tenant = "acme" } }
sources = []
mode    = "denylist"

[[wire]]
targets = { discovered_by = "taps", labels = { port = "br7" } }
sources = []
mode    = "allowlist"

[[wire]]
targets = { discovered_by = "taps" }
sources = []
mode    = "block-all"
"""

BRIDGE_CONFIG = """
[plugin.ports]
library = "interfaces"
bridge  = ["br7"]
kinds   = ["veth"]

[[wire]]
targets = { discovered_by = "ports" }
sources = []
mode    = "block-all"
"""

OVERFLOW_CONFIG = """
[plugin.taps]
library = "interfaces"
match   = ["tap*"]
event_buffer = 4096

[[wire]]
targets = { discovered_by = "taps" }
sources = []
mode    = "block-all"
"""


@pytest.fixture
def place():
    with Lab("routed") as lab:
        lab.serve()
        yield lab


def modes(daemon):
    """Mode of each attached interface, by ifindex."""
    return {slot["ifindex"]: slot["mode"] for slot in daemon.slots() if slot["ifindex"]}


def expect(lab, daemon, **wanted):
    """Exactly these interfaces are attached, each in its mode."""
    numbers = {lab.host.ifindex(name.replace("_", "-")): mode for name, mode in wanted.items()}
    try:
        eventually(lambda: modes(daemon) == numbers, f"attachments {wanted}")
    except AssertionError as error:
        raise AssertionError(f"{error}: there are {modes(daemon)}, wanted {numbers}; the log is:\n{daemon.log()}") from None


def test_attachments_follow_names_bridges_and_namespaces(place):
    host, guest = place.host, place.guest
    host.batch("""
        link add tap0 type veth peer name peer0
        link add tap-mgmt0 type veth peer name peer1
        link add vm-acme-0 type veth peer name peer2
        link add br7 type bridge
        """)
    daemon = place.daemon(policy={}, config=CONFIG)
    expect(place, daemon, h1=BLOCK_ALL, tap0=BLOCK_ALL, vm_acme_0=DENYLIST)

    host.batch("link add tap1 type veth peer name peer3\nlink set peer1 name tap2\nlink set tap0 name away")
    expect(place, daemon, h1=BLOCK_ALL, tap1=BLOCK_ALL, tap2=BLOCK_ALL, vm_acme_0=DENYLIST)

    # Another tenant's name, and another wire with it; a bridge, and another wire with that.
    host.batch("link set vm-acme-0 name vm-globex-0\nlink set away name vm-acme-1\nlink set tap1 master br7")
    expect(place, daemon, h1=BLOCK_ALL, tap1=ALLOWLIST, tap2=BLOCK_ALL, vm_globex_0=BLOCK_ALL, vm_acme_1=DENYLIST)
    host.batch("link set tap1 nomaster\nlink del tap2")
    expect(place, daemon, h1=BLOCK_ALL, tap1=BLOCK_ALL, vm_globex_0=BLOCK_ALL, vm_acme_1=DENYLIST)

    # Out of the namespace and back: the filter does not stay on a device that the daemon cannot see.
    host.ip("link", "set", "tap1", "netns", guest.name)
    expect(place, daemon, h1=BLOCK_ALL, vm_globex_0=BLOCK_ALL, vm_acme_1=DENYLIST)
    guest.ip("link", "set", "tap1", "netns", host.name)
    expect(place, daemon, h1=BLOCK_ALL, tap1=BLOCK_ALL, vm_globex_0=BLOCK_ALL, vm_acme_1=DENYLIST)
    assert not re.search(r"^\S+ \S+ (warning|error) ", daemon.log(), re.MULTILINE), daemon.log()


def test_what_is_attached_is_filtered_and_what_is_not_is_not(place):
    daemon = place.daemon(policy={}, config=CONFIG)
    expect(place, daemon, h1=BLOCK_ALL)
    assert udp_exchange(place.guest, DENIED4, 9999, timeout=0.3, tries=2) != "ok"
    place.host.batch("link set h1 down\nlink set h1 name elsewhere\nlink set elsewhere up\n")
    expect(place, daemon)
    assert eventually(lambda: udp_exchange(place.guest, DENIED4, 9999, timeout=0.3, tries=1) == "ok",
                      "traffic through an interface that is no longer selected")
    place.host.batch("link set elsewhere down\nlink set elsewhere name h1\nlink set h1 up\n")
    expect(place, daemon, h1=BLOCK_ALL)
    assert udp_exchange(place.guest, DENIED4, 9999, timeout=0.3, tries=2) != "ok"


def test_a_port_is_filtered_as_long_as_it_is_a_port(place):
    host = place.host
    host.batch("""
        link add br7 type bridge
        link add br8 type bridge
        link add left type veth peer name right
        link set left master br7
        """)
    daemon = place.daemon(policy={}, config=BRIDGE_CONFIG)
    expect(place, daemon, left=BLOCK_ALL)
    host.batch("link set right master br7\nlink set left nomaster")
    expect(place, daemon, right=BLOCK_ALL)
    host.batch("link set right master br8\nlink set left master br7")
    expect(place, daemon, left=BLOCK_ALL)
    host.ip("link", "del", "br7")
    expect(place, daemon)


def test_one_name_used_again_and_again_is_always_the_present_device(place):
    daemon = place.daemon(policy={}, config=CONFIG)
    for round in range(30):
        # Every third time under a number that was used before.
        number = "index 4711" if round % 3 == 0 else ""
        place.host.batch(f"link add tap0 {number} type veth peer name peer0")
        expect(place, daemon, h1=BLOCK_ALL, tap0=BLOCK_ALL)
        place.host.ip("link", "del", "tap0")
    expect(place, daemon, h1=BLOCK_ALL)


def test_a_storm_that_overflows_the_socket_ends_with_every_link_attached(place):
    count = 60
    daemon = place.daemon(policy={}, config=OVERFLOW_CONFIG)
    place.host.batch("\n".join(f"link add tap{i} type veth peer name tapx{i}" for i in range(count)))
    names = [f"tap{i}" for i in range(count)] + [f"tapx{i}" for i in range(count)]
    expect(place, daemon, **dict.fromkeys(names, BLOCK_ALL))
    place.host.batch("\n".join(f"link del tap{i}" for i in range(0, count, 2))
                     + "\nlink add tap0 type veth peer name tapx0")
    names = [name for i in itertools.chain([0], range(1, count, 2)) for name in (f"tap{i}", f"tapx{i}")]
    expect(place, daemon, **dict.fromkeys(names, BLOCK_ALL))


def test_what_changed_while_no_daemon_ran_is_put_right_by_the_next(place):
    host = place.host
    host.batch("\n".join(f"link add tap{i} type veth peer name peer{i}" for i in range(4)))
    daemon = place.daemon(policy={}, config=CONFIG)
    expect(place, daemon, h1=BLOCK_ALL, tap0=BLOCK_ALL, tap1=BLOCK_ALL, tap2=BLOCK_ALL, tap3=BLOCK_ALL)
    daemon.kill()
    host.batch("""
        link set tap0 name away
        link del tap1
        link del tap2
        link add tap2 type veth peer name peer2
        link add tap9 type veth peer name peer9
        """)
    daemon.start()
    expect(place, daemon, h1=BLOCK_ALL, tap2=BLOCK_ALL, tap3=BLOCK_ALL, tap9=BLOCK_ALL)
