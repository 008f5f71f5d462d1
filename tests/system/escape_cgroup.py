"""Nothing escapes from a process in a filtered cgroup.

Each way of sending is tried three times: to a denied address without the filter (it must arrive, or it proves nothing), to the
same address from inside the filtered cgroup (it must not), and from there to an allowed address (it must arrive again).
"""

import socket

import pytest

from cgroup_lab import SOURCE4, SOURCE6, place  # noqa: F401
from lab import ALLOWED4, ALLOWED6, DENIED4, DENIED6, HOLE4, HOLE6, PORTED4, PORTED6
from ways import WAYS, attempt
from workloads import Inhabitant


@pytest.fixture(scope="module")
def control(place):
    """Which ways reach a denied address when nothing filters; all of them, before the daemon starts."""
    return {way: attempt(place, way, DENIED6 if family == 6 else DENIED4, place.outside) for way, (_, family) in WAYS.items()}


@pytest.fixture(scope="module")
def workload(place, control):
    place.filter = place.start_filter()
    return place.workload(place.filter)


@pytest.mark.parametrize("way", WAYS)
def test_control_each_way_arrives_when_nothing_filters(control, way):
    arrived, answers = control[way]
    assert arrived, answers


def test_control_how_many_ways(control):
    """Each of them by the next two tests: to denied addresses, and to an allowed one."""
    arrived = sum(arrives for arrives, _ in control.values())
    assert arrived == len(WAYS)
    print(f"{len(WAYS)} ways to send, all of which arrive when nothing filters")


@pytest.mark.parametrize("way", WAYS)
def test_way_does_not_reach_a_denied_address(place, workload, way):
    six = WAYS[way][1] == 6
    for address in (DENIED6, HOLE6) if six else (DENIED4, HOLE4):
        arrived, answers = attempt(place, way, address, workload)
        assert not arrived, answers


@pytest.mark.parametrize("way", WAYS)
def test_way_reaches_an_allowed_address(place, workload, way):
    arrived, answers = attempt(place, way, ALLOWED6 if WAYS[way][1] == 6 else ALLOWED4, workload)
    assert arrived, answers


@pytest.mark.parametrize("way", ["tcp-4", "tcp-6", "tcp-mapped", "udp-4", "udp-6", "udp-connected-4", "sendmmsg-4", "mptcp-4",
                                 "udplite-4", "uring-connect-tcp-4", "uring-sendmsg-4"])
def test_a_denied_call_fails_at_once(place, workload, way):
    _, answers = attempt(place, way, DENIED6 if WAYS[way][1] == 6 else DENIED4, workload)
    assert "EPERM" in answers, answers


def test_ports_hold(place, workload):
    assert attempt(place, "tcp-4", PORTED4, workload, port=443)[0]
    assert not attempt(place, "tcp-4", PORTED4, workload, port=80)[0]
    assert attempt(place, "udp-4", PORTED4, workload, port=8050)[0]
    assert not attempt(place, "udp-4", PORTED4, workload, port=443)[0]
    assert not attempt(place, "raw-icmp-4", PORTED4, workload)[0]


@pytest.mark.parametrize("way", ["tcp-4", "udp-4", "udp-6", "raw-icmp-4", "hdrincl-4", "packet-4", "uring-sendmsg-4"])
def test_child_cgroups_are_held_by_the_same_policy(place, workload, way):
    child = workload.add_child("child-" + way)
    grandchild = child.add_child("grandchild")
    for cgroup in (child, grandchild):
        six = WAYS[way][1] == 6
        assert not attempt(place, way, DENIED6 if six else DENIED4, cgroup)[0]
        assert attempt(place, way, ALLOWED6 if six else ALLOWED4, cgroup)[0]
    child.remove()


# ---- what becomes of a packet behind the cgroup's hooks -----------------------------------------------------------------------

OVERLAY4, OVERLAY6 = "198.51.100.77", "2001:db8:a::77"  # allowed, and reached through a tunnel of the host's
FAR_MAC = bytes.fromhex("020000000008")
TUNNELS = {"by-4": "local 198.19.0.1 remote 198.19.0.2", "by-6": "local 2001:db8:ffff::1 remote 2001:db8:ffff::2"}


@pytest.fixture(params=TUNNELS)
def tunnel(request, place, workload):
    place.host.batch(f"""
        link add ovl address 02:00:00:00:00:07 type vxlan id 5 dstport 4789 {TUNNELS[request.param]}
        link set ovl mtu 1400
        link set ovl up
        route add {OVERLAY4}/32 dev ovl src {SOURCE4}
        route add {OVERLAY6}/128 dev ovl src {SOURCE6}
        route add {HOLE4}/32 dev ovl src {SOURCE4}
        neigh add {OVERLAY4} lladdr 02:00:00:00:00:08 dev ovl
        neigh add {OVERLAY6} lladdr 02:00:00:00:00:08 dev ovl
        neigh add {HOLE4} lladdr 02:00:00:00:00:08 dev ovl
        """)
    yield workload
    place.host.ip("link", "delete", "ovl")


@pytest.mark.parametrize("kind,family", [("udp", 4), ("udp", 6), ("udplite", 4), ("ping", 4), ("ping", 6)])
def test_what_policy_allows_passes_a_tunnel_of_the_host(place, tunnel, kind, family):
    """The tunnel's own packet, to an address that policy does not name, keeps the workload's socket."""
    for cgroup in (place.outside, tunnel):
        with Inhabitant(place.host, cgroup) as inhabitant:
            assert inhabitant.do("socket", 0, kind, family) == "ok 0"
            head = ("" if kind != "ping" else "0800000000010001" if family == 4 else "8000000000010001")
            address = OVERLAY6 if family == 6 else OVERLAY4
            arrived, answer = place.arrives(lambda mark: inhabitant.do("sendto", 0, address, 9999, head + mark))
            assert arrived, answer


def test_a_connection_passes_a_tunnel_of_the_host(place, tunnel):
    """Its first segment: the far end of the tunnel answers nothing."""
    with Inhabitant(place.host, tunnel) as inhabitant:
        assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
        start = len(place.sniffer.frames)
        inhabitant.do("connect", 0, OVERLAY4, 443)
        place.flush_host()
        inner = socket.inet_aton(SOURCE4) + socket.inet_aton(OVERLAY4)
        assert any(inner in bytes(frame)[54:] for frame in place.sniffer.frames[start:])


def test_what_policy_denies_does_not_pass_a_tunnel_of_the_host(place, tunnel):
    for cgroup, expected in ((place.outside, True), (tunnel, False)):
        with Inhabitant(place.host, cgroup) as inhabitant:
            assert inhabitant.do("socket", 0, "udp", 4) == "ok 0"
            assert place.arrives(lambda mark: inhabitant.do("sendto", 0, HOLE4, 9999, mark))[0] == expected
        # No hook sees what a packet socket sends by the tunnel's device, to whatever address.
        for address in (OVERLAY4, OVERLAY6, HOLE4):
            with Inhabitant(place.host, cgroup) as inhabitant:
                assert inhabitant.do("socket", 0, "packet", 4) == "ok 0"
                frame = place.udp_frame(0, address, tail=0, source=SOURCE6 if ":" in address else SOURCE4, destination_mac=FAR_MAC)
                at = frame.index(place.marker(0))
                arrived, answer = place.arrives(lambda mark: inhabitant.do("frame", 0, "ovl", (
                    frame[:at] + bytes.fromhex(mark)[:4]).hex()))
                assert arrived == expected, (address, answer)


@pytest.mark.parametrize("address", [PORTED4, PORTED6])
def test_all_fragments_of_an_allowed_datagram_leave(place, workload, address):
    """The hook has seen it whole, with its ports; later fragments have none."""
    for cgroup in (place.outside, workload):
        with Inhabitant(place.host, cgroup) as inhabitant:
            assert inhabitant.do("socket", 0, "udp", 6 if ":" in address else 4) == "ok 0"
            marker, start = place.marker(next(place.numbers)), len(place.sniffer.frames)
            assert inhabitant.do("sendto", 0, address, 8050, (marker * 500).hex()) == "ok 2000"
            place.flush_host()
            assert sum(marker in frame for frame in place.sniffer.frames[start:]) == 2
