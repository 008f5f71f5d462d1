"""Replies of a process in a filtered cgroup: to whoever spoke to it first, by the way that he came, and to nobody whose question was
forged."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from cgroup_lab import SOURCE4, SOURCE6, place, workload  # noqa: F401
from lab import DENIED4, DENIED6
from packets import PacketSocket, forged, whole_packet
from workloads import Inhabitant


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


@contextlib.contextmanager
def a_client(place, server, family, there, to):
    """Connected from outside; the server's end is its socket 2."""
    with place.internet.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM) as client:
        client.bind((there, 0))
        client.settimeout(10)
        client.connect(to)
        assert server.do("accept", 0, 2).startswith("ok")
        yield client


PROTOCOLS = ["udp", "tcp", "echo"]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_replies_to_inbound_connections_pass(place, workload, protocol, family):
    here, there, port = (SOURCE4, DENIED4, 7000) if family == 4 else (SOURCE6, DENIED6, 7000)
    with a_server(place, workload, protocol, family, here, port) as (server, reply):
        assert not place.arrives(lambda mark: reply(mark, there, 7002))[0], "before, nothing is a reply"
        if protocol == "tcp":
            with a_client(place, server, family, there, (here, port)) as client:
                client.sendall(b"question")
                assert server.do("recv", 2, 60000) == "ok " + b"question".hex()
                assert server.do("send", 2, b"answer".hex()) == "ok 6"
                assert client.recv(100) == b"answer"
            return
        send_from_outside(place, forged(protocol, there, here, 7002, port))
        assert server.do("recv", 0, 60000).startswith("ok")
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


def forge_on_the_host(place, sibling, forger, packet):
    if forger == "loopback":
        forge_by(place.host, "lo", bytes(6), packet)
    else:
        forge_by(sibling, "g2", place.host.mac("h2"), packet)


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
            forge_on_the_host(place, sibling, forger, forged(protocol, foreign, here, 7002, port))
            if protocol != "tcp":
                assert server.do("recv", 0, 60000).startswith("ok"), "the server is given it"
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
        forge_on_the_host(place, sibling, forger, forged(protocol, there, here, their_port, port))
        place.flush_host()

    with a_server(place, workload, protocol, family, here, port) as (server, reply):
        if protocol == "tcp":
            with a_client(place, server, family, there, (here, port)) as client:
                for _ in range(2):
                    assert server.do("send", 2, b"answer".hex()) == "ok 6"
                    assert client.recv(100) == b"answer"
                    forge(client.getsockname()[1])
            return
        send_from_outside(place, forged(protocol, there, here, 7002, port))
        assert server.do("recv", 0, 60000).startswith("ok")
        for _ in range(2):
            assert place.arrives(lambda mark: reply(mark, there, 7002))[0]
            forge(7002)
            assert server.do("recv", 0, 60000).startswith("ok"), "the server is given it"
