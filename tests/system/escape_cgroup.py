"""Nothing escapes from a process in a filtered cgroup.

Each way of sending is tried three times: to a denied address without the filter (it must arrive, or it proves nothing), to the
same address from inside the filtered cgroup (it must not), and from there to an allowed address (it must arrive again).
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from lab import ALLOWED4, ALLOWED6, DENIED4, DENIED6, HOLE4, HOLE6, PORTED4, PORTED6, Lab
from machine import eventually
from packets import PacketSocket, forged, raw_udp4, whole_packet
from workloads import Inhabitant

CONFIG = """
[plugin.groups]
library = "cgroups"
match   = ["{parent}/*"]
labels  = { class = "vm" }

[plugin.static]
library  = "static"
policies = ["{policies}"]

[guard]
uplinks = ["uplink"]

[[wire]]
targets = { discovered_by = "groups" }
sources = ["static"]
mode    = "block-all"
"""

SOURCE4, SOURCE6 = "198.19.0.1", "2001:db8:ffff::1"


class CgroupLab(Lab):
    """The host with its uplink, and a parent cgroup whose children are filtered once a daemon runs."""

    def __init__(self):
        super().__init__("host")
        try:
            self.serve()
            self.parent = self.cgroup("parent")
            self.outside = self.cgroup("outside")
            self.numbers = iter(range(1, 0xFFFF))
        except BaseException:
            self.close()
            raise

    def start_filter(self, config=CONFIG, **options):
        daemon = self.daemon(config=config.replace("{parent}", self.parent.name), **options)
        return daemon

    def workload(self, daemon, name="w"):
        """A child cgroup under its policy."""
        child = self.parent.add_child(name)
        eventually(lambda: (daemon.slot_of(cgroup_id=child.id) or {}).get("mode") == 1, f"{child.name} under its policy")
        return child

    def flush_host(self):
        """Everything sent before has arrived. The sentinel comes from a socket outside every filtered cgroup."""
        with contextlib.closing(self.host.socket(socket.AF_INET, socket.SOCK_DGRAM)) as witness:
            self.flush(lambda: witness.sendto(self.marker(self.SENTINEL), (ALLOWED4, 9999)))

    def arrives(self, action):
        """Does a marker that `action(hex)` sends arrive?"""
        number = next(self.numbers)
        start = len(self.sniffer.frames)
        answers = action(self.marker(number).hex() + "00" * 12)
        self.flush_host()
        return number in self.arrived(start), answers


@pytest.fixture(scope="module")
def place():
    with CgroupLab() as lab:
        lab.filter = None
        yield lab


# ---- the ways ---------------------------------------------------------------------------------------------------------------

def connected(kind, family):
    def way(i, mark, address, port, _):
        i.do("socket", 0, kind, family)
        yield i.do("connect", 0, address, port)
        yield i.do("send", 0, mark)
    return way


def addressed(kind, family, command="sendto"):
    def way(i, mark, address, port, _):
        i.do("socket", 0, kind, family)
        yield i.do(command, 0, address, port, mark)
    return way


def several_messages(family):
    """The denied one is in the middle of a batch that begins with an allowed one."""
    def way(i, mark, address, port, _):
        i.do("socket", 0, "udp", family)
        allowed = ALLOWED6 if ":" in address else ALLOWED4
        blank = "00" * 16
        yield i.do("sendmmsg", 0, port, blank, allowed)
        yield i.do("sendmmsg", 0, port, mark, address, address)
    return way


def connected_sent_elsewhere(family):
    def way(i, mark, address, port, _):
        i.do("socket", 0, "udp", family)
        allowed = ALLOWED6 if family == 6 else ALLOWED4
        yield i.do("connect", 0, allowed, port)
        yield i.do("sendto", 0, address, port, mark)
    return way


def bound_first(family):
    """A bound socket might be a server that answers."""
    def way(i, mark, address, port, _):
        i.do("socket", 0, "udp", family)
        yield i.do("bind", 0, "0.0.0.0" if family == 4 else "::", 12345)
        yield i.do("sendto", 0, address, port, mark)
    return way


def fast_open(kind, family):
    def way(i, mark, address, port, _):
        # A first connection may earn a cookie; the second carries data in its SYN.
        for number in (0, 1):
            i.do("socket", number, kind, family)
            yield i.do("fastopen", number, address, port, mark)
    return way


def by_ring_connect(kind, family):
    def way(i, mark, address, port, _):
        i.do("socket", 0, kind, family)
        yield i.do("uring-connect", 0, address, port)
        yield i.do("uring-send", 0, mark)
    return way


def ping_socket(family):
    def way(i, mark, address, _, __):
        i.do("socket", 0, "ping", family)
        echo = ("0800" if family == 4 else "8000") + "0000" + "00010001" + mark
        yield i.do("sendto", 0, address, 0, echo)
    return way


def raw_socket(protocol, family, command="sendto"):
    def way(i, mark, address, _, __):
        yield i.do("socket", 0, f"raw:{protocol}", family)
        head = "0001000900240000" if protocol in (17, 136) else "08000000" "00010001" if protocol == 1 else "80000000" "00010001"
        if command == "connected":
            yield i.do("connect", 0, address, 0)
            yield i.do("send", 0, head + mark)
        else:
            yield i.do(command, 0, address, 0, head + mark)
    return way


def own_header(family, lie=None):
    """IP_HDRINCL: the header's destination is what counts, whatever sendto says."""
    def way(i, mark, address, _, __):
        yield i.do("socket", 0, "hdrincl", family)
        payload = bytes.fromhex(mark)
        if family == 4:
            packet = raw_udp4(SOURCE4, address, 1, 9, payload)
        else:
            packet = struct.pack("!IHBB", 6 << 28, 8 + len(payload), 17, 64) + socket.inet_pton(socket.AF_INET6, SOURCE6) + socket.inet_pton(
                socket.AF_INET6, address) + struct.pack("!HHHH", 1, 9, 8 + len(payload), 0) + payload
        yield i.do("sendto", 0, lie or address, 0, packet.hex())
    return way


def packet_socket(family):
    """No cgroup hook sees it; the uplink guard reads the socket's cgroup."""
    def way(i, mark, address, _, lab):
        yield i.do("socket", 0, "packet", 4)
        payload = bytes.fromhex(mark)
        if family == 4:
            packet, kind = raw_udp4(SOURCE4, address, 1, 9, payload), "0800"
        else:
            packet, kind = struct.pack("!IHBB", 6 << 28, 8 + len(payload), 17, 64) + socket.inet_pton(
                socket.AF_INET6, SOURCE6) + socket.inet_pton(socket.AF_INET6, address) + struct.pack(
                    "!HHHH", 1, 9, 8 + len(payload), 0) + payload, "86dd"
        yield i.do("frame", 0, "uplink", lab.gateway_mac.hex() + lab.guest_mac.hex() + kind + packet.hex())
    return way


WAYS = {
    "tcp-4": (connected("tcp", 4), 4), "tcp-6": (connected("tcp", 6), 6), "tcp-mapped": (connected("tcp", 46), 4),
    "udp-connected-4": (connected("udp", 4), 4), "udp-connected-6": (connected("udp", 6), 6),
    "udp-connected-mapped": (connected("udp", 46), 4),
    "udp-4": (addressed("udp", 4), 4), "udp-6": (addressed("udp", 6), 6), "udp-mapped": (addressed("udp", 46), 4),
    "udp-bound-4": (bound_first(4), 4), "udp-bound-6": (bound_first(6), 6),
    "sendmmsg-4": (several_messages(4), 4), "sendmmsg-6": (several_messages(6), 6), "sendmmsg-mapped": (several_messages(46), 4),
    "udp-connected-sent-elsewhere-4": (connected_sent_elsewhere(4), 4),
    "udp-connected-sent-elsewhere-6": (connected_sent_elsewhere(6), 6),
    "udp-connected-sent-elsewhere-mapped": (connected_sent_elsewhere(46), 4),
    "fast-open-4": (fast_open("tcp", 4), 4), "fast-open-6": (fast_open("tcp", 6), 6), "fast-open-mapped": (fast_open("tcp", 46), 4),
    "mptcp-4": (connected("mptcp", 4), 4), "mptcp-6": (connected("mptcp", 6), 6), "mptcp-mapped": (connected("mptcp", 46), 4),
    "mptcp-fast-open-4": (fast_open("mptcp", 4), 4),
    "udplite-4": (addressed("udplite", 4), 4), "udplite-6": (addressed("udplite", 6), 6),
    "udplite-connected-4": (connected("udplite", 4), 4), "udplite-mapped": (addressed("udplite", 46), 4),
    "ping-socket-4": (ping_socket(4), 4), "ping-socket-6": (ping_socket(6), 6),
    "raw-udp-4": (raw_socket(17, 4), 4), "raw-udp-6": (raw_socket(17, 6), 6), "raw-icmp-4": (raw_socket(1, 4), 4),
    "raw-icmp-6": (raw_socket(58, 6), 6), "raw-253-4": (raw_socket(253, 4), 4), "raw-253-6": (raw_socket(253, 6), 6),
    "raw-gre-4": (raw_socket(47, 4), 4), "raw-udp-connected-4": (raw_socket(17, 4, "connected"), 4),
    "hdrincl-4": (own_header(4), 4), "hdrincl-6": (own_header(6), 6), "hdrincl-lying-4": (own_header(4, ALLOWED4), 4),
    "packet-4": (packet_socket(4), 4), "packet-6": (packet_socket(6), 6),
    "uring-connect-tcp-4": (by_ring_connect("tcp", 4), 4), "uring-connect-tcp-6": (by_ring_connect("tcp", 6), 6),
    "uring-connect-udp-4": (by_ring_connect("udp", 4), 4),
    "uring-sendmsg-4": (addressed("udp", 4, "uring-sendmsg"), 4), "uring-sendmsg-6": (addressed("udp", 6, "uring-sendmsg"), 6),
    "uring-sendmsg-mapped": (addressed("udp", 46, "uring-sendmsg"), 4),
}


def attempt(lab, way, address, cgroup, port=None):
    function, _ = WAYS[way]
    with Inhabitant(lab.host, cgroup) as inhabitant:
        port = port or (443 if "tcp" in way or "fast" in way else 9999)
        return lab.arrives(lambda mark: list(function(inhabitant, mark, address, port, lab)))


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


@contextlib.contextmanager
def a_server(place, workload, protocol, family, here, port):
    """A socket in the workload that is given what is sent to it, and how it replies."""
    with Inhabitant(place.host, workload) as server:
        if protocol == "echo":
            assert server.do("socket", 0, "raw:58" if family == 6 else "raw:1", family) == "ok 0"
        else:
            assert server.do("socket", 0, protocol, family) == "ok 0"
            assert server.do("bind", 0, here, port) == "ok 0"
        if protocol == "tcp":
            assert server.do("listen", 0) == "ok 0"
            assert server.do("socket", 1, "hdrincl", family) == "ok 0"

        def reply(mark, to, to_port):
            if protocol == "udp":
                return server.do("sendto", 0, to, to_port, mark)
            if protocol == "tcp":  # no SYN: what a connection from outside is answered with
                segment = whole_packet("tcp", here, to, port, to_port, bytes.fromhex(mark), tcp_flags=0x18)
                return server.do("sendto", 1, to, 0, segment.hex())
            return server.do("sendto", 0, to, 0, ("81000000" if family == 6 else "00000000") + f"{port:04x}0001" + mark)

        yield server, reply


PROTOCOLS = ["udp", "tcp", "echo"]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_replies_to_inbound_connections_pass(place, workload, protocol, family):
    here, there, port = (SOURCE4, DENIED4, 7000) if family == 4 else (SOURCE6, DENIED6, 7000)
    with a_server(place, workload, protocol, family, here, port) as (server, reply):
        assert not place.arrives(lambda mark: reply(mark, there, 7002))[0], "before, nothing is a reply"
        if protocol == "tcp":
            with place.internet.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM) as client:
                client.bind((there, 0))
                client.settimeout(10)
                client.connect((here, port))
                assert server.do("accept", 0, 2).startswith("ok")
                client.sendall(b"question")
                assert server.do("recv", 2, 5000) == "ok " + b"question".hex()
                assert server.do("send", 2, b"answer".hex()) == "ok 6"
                assert client.recv(100) == b"answer"
            return
        send_from_outside(place, forged(protocol, there, here, 7002, port))
        assert server.do("recv", 0, 5000).startswith("ok")
        assert place.arrives(lambda mark: reply(mark, there, 7002))[0]


def send_from_outside(place, packet):
    with contextlib.closing(PacketSocket(place.internet, "i0")) as outside:
        outside.send(place.guest_mac + place.gateway_mac + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet)


@pytest.mark.parametrize("family", [4, 6])
def test_clients_on_the_host_are_answered(place, workload, family):
    """By loopback, where source and destination are the host's own."""
    for here in (SOURCE4, "127.0.0.1") if family == 4 else (SOURCE6, "::1"):
        with Inhabitant(place.host, workload) as server, place.host.socket(
                socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM) as client:
            assert server.do("socket", 0, "tcp", family) == "ok 0"
            assert server.do("bind", 0, here, 7010) == "ok 0"
            assert server.do("listen", 0) == "ok 0"
            client.settimeout(10)
            client.connect((here, 7010))
            assert server.do("accept", 0, 1).startswith("ok")
            assert server.do("send", 1, b"answer".hex()) == "ok 6"
            assert client.recv(100) == b"answer"


# ---- forged questions ---------------------------------------------------------------------------------------------------------

def forge_in_own_namespace(place, workload, protocol, foreign, here, ports, ifindex=0):
    """As nobody, in the filtered cgroup. The shell has none of this process's sockets, which would be shut with it until it executes."""
    words = [sys.executable, os.path.join(os.path.dirname(__file__), "forger.py"), protocol, foreign, here, *map(str, ports), str(ifindex)]
    join = 'echo $$ > "$0" && exec setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@"'
    done = subprocess.run(["sh", "-c", join, f"{workload.path}/cgroup.procs", *words], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "taken", done.stdout + done.stderr


def forge_by(namespace, device, mac, packet):
    with contextlib.closing(PacketSocket(namespace, device)) as sender:
        sender.send(mac + bytes(6) + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet)


@pytest.fixture(scope="module")
def sibling(place):
    """Another workload of this host, behind a device of its own, who writes what it likes."""
    return place.add_guest(2)


FORGERS = ["own-namespace", "own-namespace-same-ifindex", "loopback", "sibling"]


@pytest.mark.parametrize("forger", FORGERS)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_forged_question_opens_nothing(place, workload, sibling, protocol, family, forger):
    """Its source is a denied address, which has sent nothing."""
    here, foreign = (SOURCE4, DENIED4) if family == 4 else (SOURCE6, DENIED6)
    port = 7100 + 10 * FORGERS.index(forger) + PROTOCOLS.index(protocol)
    with a_server(place, workload, protocol, family, here, port) as (server, reply):
        assert not place.arrives(lambda mark: reply(mark, foreign, 7002))[0], "before"
        if forger.startswith("own-namespace"):
            ifindex = place.host.ifindex("uplink") if forger.endswith("ifindex") else 0
            forge_in_own_namespace(place, workload, protocol, foreign, here, (7002, port), ifindex)
        else:
            packet = forged(protocol, foreign, here, 7002, port)
            if forger == "loopback":
                forge_by(place.host, "lo", bytes(6), packet)
            else:
                forge_by(sibling, "g2", place.host.mac("h2"), packet)
            if protocol != "tcp":
                assert server.do("recv", 0, 5000).startswith("ok"), "the server is given it"
        for _ in range(3):
            arrived, answers = place.arrives(lambda mark: reply(mark, foreign, 7002))
            assert not arrived, answers


@pytest.mark.parametrize("forger", ["loopback", "sibling"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_forged_question_takes_nothing_from_a_real_one(place, workload, sibling, protocol, family, forger):
    """It comes by another device, with the source and ports of a client that is being served: he is answered as before."""
    here, there, port = (SOURCE4, DENIED4, 7200) if family == 4 else (SOURCE6, DENIED6, 7200)

    def forge(their_port):
        packet = forged(protocol, there, here, their_port, port)
        if forger == "loopback":
            forge_by(place.host, "lo", bytes(6), packet)
        else:
            forge_by(sibling, "g2", place.host.mac("h2"), packet)
        place.flush_host()

    with a_server(place, workload, protocol, family, here, port) as (server, reply):
        if protocol == "tcp":
            with place.internet.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM) as client:
                client.bind((there, 0))
                client.settimeout(10)
                client.connect((here, port))
                assert server.do("accept", 0, 2).startswith("ok")
                for _ in range(2):
                    assert server.do("send", 2, b"answer".hex()) == "ok 6"
                    assert client.recv(100) == b"answer"
                    forge(client.getsockname()[1])
            return
        send_from_outside(place, forged(protocol, there, here, 7002, port))
        assert server.do("recv", 0, 5000).startswith("ok")
        for _ in range(2):
            assert place.arrives(lambda mark: reply(mark, there, 7002))[0]
            forge(7002)
            assert server.do("recv", 0, 5000).startswith("ok"), "the server is given it"


# ---- sockets opened before the process joined -----------------------------------------------------------------------------

BEFORE = {
    "tcp-connected": ("tcp", True, 443), "udp-connected": ("udp", True, 9999), "udp-unconnected": ("udp", False, 9999),
    "udplite-unconnected": ("udplite", False, 9999), "raw-unconnected": ("raw:253", False, 0),
    "mptcp-connected": ("mptcp", True, 443), "packet": ("packet", False, 0),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", BEFORE)
def test_sockets_opened_before_joining_are_shut(place, workload, kind, family, record_property):
    """After the move a moment may pass; then nothing more is sent, whatever is tried. Connections to allowed addresses are of
    the same kind: they were made outside, nobody judges them, so they end too."""
    what, is_connected, port = BEFORE[kind]
    address = DENIED6 if family == 6 else DENIED4
    with Inhabitant(place.host, place.outside) as inhabitant:
        assert inhabitant.do("socket", 0, what, family).startswith("ok")
        if is_connected:
            assert inhabitant.do("connect", 0, address, port).startswith("ok")

        def send(mark):
            if what == "packet":
                frame = place.udp_frame(0, address, tail=0, source=SOURCE4 if family == 4 else SOURCE6)
                at = frame.index(place.marker(0))
                return inhabitant.do("frame", 0, "uplink", (frame[:at] + bytes.fromhex(mark)[:4]).hex())
            return inhabitant.do("send", 0, mark) if is_connected else inhabitant.do("sendto", 0, address, port, mark)

        assert place.arrives(send)[0], "before the move it arrives"
        moved = time.monotonic()
        workload.move_here(inhabitant.process.pid)
        eventually(lambda: not place.arrives(send)[0], f"{kind}: shut after the move", pause=0)
        record_property("seconds_until_shut", round(time.monotonic() - moved, 4))
        print(f"{kind}-{family}: shut within {1000 * (time.monotonic() - moved):.1f} ms of the move, one probe included")
        for _ in range(10):
            assert not place.arrives(send)[0]


def bring_in(place, workload, inhabitant):
    """Moves it, and returns once the daemon has shut what it brought."""
    workload.move_here(inhabitant.process.pid)
    eventually(lambda: f"(pid {inhabitant.process.pid}) brought into the cgroup" in place.filter.log(whole=True), "its socket is shut")


def frames_to(place, address, start):
    """Of any kind: a handshake is a way out too."""
    place.flush_host()
    wanted = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return [frame for frame in place.sniffer.frames[start:] if wanted in frame[14:54]]


REVIVED = [("tcp", 4), ("tcp", 6), ("tcp", 46), ("mptcp", 4), ("mptcp", 6), ("mptcp", 46)]
IDS = [f"{kind}-{family}" for kind, family in REVIVED]


@pytest.mark.parametrize("is_connected", [False, True], ids=["made-outside", "connected-outside"])
@pytest.mark.parametrize("kind, family", REVIVED, ids=IDS)
def test_a_socket_that_was_shut_cannot_be_revived(place, workload, kind, family, is_connected):
    """connect(AF_UNSPEC) makes a TCP socket as good as new, except that it is of the cgroup outside."""
    address = DENIED6 if family == 6 else DENIED4
    with Inhabitant(place.host, place.outside) as inhabitant:
        assert inhabitant.do("socket", 0, kind, family) == "ok 0"
        if is_connected:
            assert inhabitant.do("connect", 0, address, 443) == "ok 0"
            assert place.arrives(lambda mark: inhabitant.do("send", 0, mark))[0]
        bring_in(place, workload, inhabitant)
        place.flush_host()
        start = len(place.sniffer.frames)
        tried = [lambda mark: (inhabitant.do("disconnect", 0), inhabitant.do("connect", 0, address, 443), inhabitant.do("send", 0, mark)),
                 lambda mark: (inhabitant.do("disconnect", 0), inhabitant.do("fastopen", 0, address, 443, mark)),
                 lambda mark: (inhabitant.do("disconnect", 0), inhabitant.do("bind", 0, "0.0.0.0" if family == 4 else "::", 7100),
                               inhabitant.do("uring-connect", 0, address, 443), inhabitant.do("uring-send", 0, mark))]
        for way in tried:
            arrived, answers = place.arrives(way)
            assert not arrived, answers
        assert frames_to(place, address, start) == []
    assert attempt(place, f"{kind}-{'mapped' if family == 46 else family}", address, place.outside)[0], "sockets outside go on"


@pytest.mark.parametrize("has_listened", [False, True], ids=["listens-inside", "listened-outside"])
@pytest.mark.parametrize("kind, family", REVIVED, ids=IDS)
def test_a_socket_that_was_shut_accepts_nobody(place, workload, kind, family, has_listened):
    """What it would accept is of the cgroup outside as well."""
    source, far = (SOURCE6, DENIED6) if family == 6 else (SOURCE4, DENIED4)

    def calls():
        with contextlib.closing(place.internet.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_STREAM)) as client:
            client.bind((far, 0))
            client.settimeout(1.5)
            try:
                client.connect((source, 7200))
                return True
            except TimeoutError:
                return False

    with Inhabitant(place.host, place.outside) as inhabitant:
        def listen():
            assert inhabitant.do("bind", 0, "0.0.0.0" if family == 4 else "::", 7200) == "ok 0"
            assert inhabitant.do("listen", 0) == "ok 0"

        assert inhabitant.do("socket", 0, kind, family) == "ok 0"
        if has_listened:
            listen()
            assert calls() and calls()
            assert inhabitant.do("accept", 0, 1).startswith("ok")  # the other one waits
        bring_in(place, workload, inhabitant)
        inhabitant.do("disconnect", 0)
        place.flush_host()
        start = len(place.sniffer.frames)
        if has_listened:
            assert inhabitant.do("listen", 0) in ("ok 0", "EINVAL")
            assert not place.arrives(lambda mark: inhabitant.do("send", 1, mark))[0], "what was accepted before"
        else:
            listen()
        assert not calls()
        assert [frame for frame in frames_to(place, far, start) if frame[:6] == place.gateway_mac] == []


def test_what_a_datagram_socket_had_corked_does_not_leave(place, workload):
    with Inhabitant(place.host, place.outside) as inhabitant:
        inhabitant.do("socket", 0, "udp", 4)
        assert inhabitant.do("cork", 0, 1) == "ok 0"

        def uncork(mark):
            inhabitant.do("sendto", 0, DENIED4, 9999, mark)
            return inhabitant.do("cork", 0, 0)

        assert place.arrives(uncork)[0]
        assert inhabitant.do("cork", 0, 1) == "ok 0"
        inhabitant.do("sendto", 0, DENIED4, 9999, place.marker(0xFFFD).hex())
        bring_in(place, workload, inhabitant)
        inhabitant.do("cork", 0, 0)
        place.flush_host()
        assert 0xFFFD not in place.arrived()


def test_a_process_that_leaves_no_room_for_the_tag_is_ended(place, workload):
    """The tag counts against the option memory of the socket, which is its owner's to fill."""
    with Inhabitant(place.host, place.outside) as inhabitant:
        inhabitant.do("socket", 0, "tcp", 4)
        assert inhabitant.do("hoard", 0).startswith("ok")
        workload.move_here(inhabitant.process.pid)
        eventually(lambda: inhabitant.process.poll() is not None, "it is ended")
        assert f"pid {inhabitant.process.pid} is ended for it" in place.filter.log(whole=True)


def test_a_socket_of_a_cgroup_that_is_gone_stays_shut(place, workload):
    former = place.outside.add_child("former")
    with Inhabitant(place.host, former) as inhabitant:
        assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
        bring_in(place, workload, inhabitant)
        former.remove()
        place.flush_host()
        start = len(place.sniffer.frames)
        inhabitant.do("disconnect", 0)
        assert inhabitant.do("connect", 0, DENIED4, 443) != "ok 0"
        assert frames_to(place, DENIED4, start) == []


def test_a_socket_opened_inside_goes_on_after_a_move_between_children(place, workload):
    """Only sockets from elsewhere are shut: a process that moves within its own attachment keeps its connections."""
    child = workload.add_child("inner")
    with Inhabitant(place.host, workload) as inhabitant:
        assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
        assert inhabitant.do("connect", 0, ALLOWED4, 443) == "ok 0"
        child.move_here(inhabitant.process.pid)
        for _ in range(20):
            assert inhabitant.do("send", 0, "00ff") == "ok 2"
            assert inhabitant.do("recv", 0, 5000) == "ok 00ff"
    child.remove()


# Connects, then starts a child in the cgroup as a manager does: fork, join, and after a while execute; or, told so, it stays as it
# is, or forks on for ever.
MANAGES = """
import os, socket, sys, time
door, address, mode = sys.argv[1:]
own = socket.create_connection((address, 443), 10)
if os.fork() == 0:
    with open(door, "w") as procs:
        procs.write("0")
    print(os.getpid(), flush=True)
    while mode == "forks":
        time.sleep(0.3)
        if os.fork() != 0:
            os._exit(0)
    time.sleep(60 if mode == "stays" else 0.4)
    os.execvp("sleep", ["sleep", "60"])
for line in sys.stdin:
    try:
        own.sendall(b"ask")
        print(own.recv(3).decode() or "shut", flush=True)
    except OSError:
        print("shut", flush=True)
"""


@contextlib.contextmanager
def manager(place, workload, address, mode):
    """(its process, the child's pid)"""
    process = place.host.popen([sys.executable, "-c", MANAGES, f"{workload.path}/cgroup.procs", address, mode],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    child = int(process.stdout.readline())
    try:
        yield process, child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def asks(process):
    process.stdin.write("ask\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.mark.parametrize("address", [DENIED4, DENIED6])
def test_a_manager_keeps_its_connections_when_it_forks_into_the_cgroup(place, workload, address):
    with manager(place, workload, address, "executes") as (process, child):
        for _ in range(15):
            assert asks(process) == "ask"
            time.sleep(0.1)
        assert f"(pid {child}) brought into the cgroup" not in place.filter.log(whole=True)


def test_a_child_that_does_not_execute_loses_them_after_a_moment(place, workload):
    with manager(place, workload, DENIED4, "stays") as (process, child):
        eventually(lambda: f"(pid {child}) brought into the cgroup" in place.filter.log(whole=True), "its socket is shut")


def test_a_chain_of_forks_does_not_hand_them_on(place, workload):
    """Whoever has it forks and ends, again and again: none of them is ever old, and none but the first moved."""
    cgroup = workload.add_child("chain")
    try:
        with manager(place, cgroup, DENIED4, "forks") as (process, _):
            eventually(lambda: asks(process) != "ask", "the socket is shut")
    finally:
        cgroup.remove()


def test_a_socket_of_a_cgroup_that_was_removed_is_still_the_workloads(place, workload):
    """It was made inside, where its policy holds for it as before."""
    first, second, third = (workload.add_child(name) for name in ("first", "second", "third"))
    with Inhabitant(place.host, first) as inhabitant:
        assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
        assert inhabitant.do("connect", 0, ALLOWED4, 443) == "ok 0"
        second.move_here(inhabitant.process.pid)
        first.remove()
        third.move_here(inhabitant.process.pid)
        witness_of_a_sweep(place, workload)
        assert inhabitant.do("send", 0, "00ff") == "ok 2"
        assert inhabitant.do("recv", 0, 5000) == "ok 00ff"
    second.remove()
    third.remove()


def witness_of_a_sweep(place, workload):
    """What moved before has been looked at: this one's socket is shut."""
    with Inhabitant(place.host, place.outside) as inhabitant:
        assert inhabitant.do("socket", 0, "udp", 4) == "ok 0"
        bring_in(place, workload, inhabitant)


MAKES_AND_REMOVES = """
import os, sys
print("busy", flush=True)
while True:
    os.mkdir(sys.argv[1])
    os.rmdir(sys.argv[1])
"""


def test_cgroups_that_come_and_go_do_not_cost_their_neighbours_a_socket(place, workload):
    neighbours = [workload.add_child(f"neighbour-{number}") for number in range(20)]
    churner = place.host.popen([sys.executable, "-c", MAKES_AND_REMOVES, f"{workload.path}/passing"], stdout=subprocess.PIPE)
    try:
        assert churner.stdout.readline() == b"busy\n"
        with Inhabitant(place.host, neighbours[0]) as inhabitant:
            assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
            assert inhabitant.do("connect", 0, ALLOWED4, 443) == "ok 0"
            for number in range(100):
                neighbours[number % 20].move_here(inhabitant.process.pid)
                time.sleep(0.01)
            assert inhabitant.do("send", 0, "00ff") == "ok 2"
            assert inhabitant.do("recv", 0, 5000) == "ok 00ff"
    finally:
        churner.kill()
        churner.wait()
        churner.stdout.close()
        with contextlib.suppress(OSError):
            os.rmdir(f"{workload.path}/passing")
    for neighbour in neighbours:
        neighbour.remove()


MOVES_TO_AND_FRO = """
import os, sys
doors = [os.open(f"{path}/cgroup.procs", os.O_WRONLY) for path in sys.argv[1:]]
print("moving", flush=True)
while True:
    for door in doors:
        os.write(door, b"0")
"""


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def has_sanitizer(pid):
    """Its allocator then keeps what was freed."""
    with open(f"/proc/{pid}/maps") as maps:
        libraries = maps.read()
    return "libasan" in libraries or "libtsan" in libraries


def test_a_flood_of_moves_does_not_keep_a_socket_open(place, workload):
    """Nor does it fill the daemon: whoever moves all the time is looked at again, not more often than once at a time."""
    left, right = workload.add_child("left"), workload.add_child("right")
    before = resident_kib(place.filter.process.pid)
    movers = [place.host.popen([sys.executable, "-c", MOVES_TO_AND_FRO, left.path, right.path], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for mover in movers:
            assert mover.stdout.readline() == b"moving\n"
        time.sleep(2)  # what had piled up by then would be looked at first
        for _ in range(5):
            with Inhabitant(place.host, place.outside) as inhabitant:
                assert inhabitant.do("socket", 0, "udp", 4) == "ok 0"
                bring_in(place, workload, inhabitant)
                assert not place.arrives(lambda mark: inhabitant.do("sendto", 0, DENIED4, 9999, mark))[0]
        assert has_sanitizer(place.filter.process.pid) or resident_kib(place.filter.process.pid) < before + 8192
    finally:
        for mover in movers:
            mover.kill()
            mover.wait()
            mover.stdout.close()
    left.remove()
    right.remove()


def test_a_socket_brought_in_while_no_daemon_ran_is_shut_by_the_next(place, workload):
    with Inhabitant(place.host, place.outside) as inhabitant:
        assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
        place.filter.kill()
        workload.move_here(inhabitant.process.pid)
        place.filter.start()
        eventually(lambda: f"(pid {inhabitant.process.pid}) brought into the cgroup" in place.filter.log(whole=True), "its socket is shut")
        inhabitant.do("disconnect", 0)
        assert inhabitant.do("connect", 0, DENIED4, 443) != "ok 0"


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
