"""The ways in which a process in a cgroup can send. Each is a function of an inhabitant, a marker to send, an address and a port that
yields the inhabitant's answers, and the family of the addresses that it takes."""

import socket
import struct

from cgroup_lab import SOURCE4, SOURCE6
from lab import ALLOWED4, ALLOWED6
from packets import raw_udp4
from workloads import Inhabitant


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
