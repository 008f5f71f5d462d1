"""Whatever server a workload asks, over whatever transport, the host's resolver answers from that server's address, and no packet to
port 53 is seen beyond the uplink: through a routed link and a bridged one, with the resolver alive and dead.
"""

import dns.message
import dns.query
import dns.rcode
import pytest
from daemon import names_config
from lab import GATEWAY4, GATEWAY6, GUEST4, GUEST6, Lab
from machine import eventually
from packets import fragmented, whole_packet
from scripted_upstream import ScriptedUpstream, records
from traffic import tcp_exchange

# The servers that are asked are on the list, on every port, and on the floor: neither matters to port 53.
POLICY = """
[[policy]]
name  = "names"
match = { class = "vm" }
mode  = "allowlist"
[[policy.allow]]
domains = ["www.names.example"]
ports   = ["tcp/443"]
[[policy.allow]]
cidrs = ["203.0.113.53/32", "2001:db8:bad::53/128"]
"""
SERVERS = {
    "a public resolver": "8.8.8.8",
    "an address where nothing is": "203.0.113.53",
    "an IPv6 address where nothing is": "2001:db8:bad::53",
    "a real server that is allowed": "203.0.113.66",
    "the gateway": GATEWAY4,
    "the gateway's IPv6 address": GATEWAY6,
    "the metadata service": "169.254.169.254",
}


@pytest.fixture(scope="module", params=["routed", "bridged"])
def lab(request):
    upstream = {"routed": "198.19.0.2", "bridged": GATEWAY4}[request.param]
    with Lab(request.param) as lab:
        lab.upstream = upstream
        lab.script = ScriptedUpstream(lab.internet, upstream)
        lab.cleanups.callback(lab.script.stop)
        lab.script.script["www.names.example"] = lambda q: records(
            "www.names.example 60 A 198.51.100.10" if q.question[0].rdtype == 1 else "www.names.example 60 AAAA 2001:db8:a::10")
        lab.tamed = lab.daemon(POLICY, names_config(upstream))
        lab.wait_filtered(lab.tamed)
        lab.serve(udp=[443])
        yield lab


def ask(lab, server, name, transport, timeout=30):
    query = dns.message.make_query(name + ".", "A", use_edns=0)
    with lab.guest.inside():
        try:
            # dnspython takes an answer only from the address and port that it asked.
            return (dns.query.tcp if transport == "tcp" else dns.query.udp)(query, server, timeout=timeout)
        except (dns.exception.Timeout, EOFError, OSError):
            return None


def to_port_53(lab, start):
    """Frames of the guest's own to port 53 beyond the uplink; the upstream's questions come from the host."""
    guest = (b"\xc6\x12\x01\x02", bytes.fromhex("20010db8000000010000000000000002"))
    return [frame for frame in lab.sniffer.frames[start:] if b"\x00\x35" in frame[34:62] and any(address in frame[22:46] for address in guest)]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS.keys())
def test_every_server_is_the_host_s_resolver(lab, server, transport):
    start = len(lab.sniffer.frames)
    allowed = ask(lab, server, "www.names.example", transport)
    assert allowed is not None and [str(item) for rrset in allowed.answer for item in rrset] == ["198.51.100.10"]
    refused = ask(lab, server, "secret.elsewhere.example", transport)
    assert refused is not None and refused.rcode() == dns.rcode.NXDOMAIN
    assert "secret.elsewhere.example" not in lab.script.names_asked()
    assert not to_port_53(lab, start)


def test_what_was_resolved_is_open_on_the_rule_s_ports_only(lab):
    assert ask(lab, "203.0.113.53", "www.names.example", "udp") is not None
    assert tcp_exchange(lab.guest, "198.51.100.10", 443) == "ok"
    assert tcp_exchange(lab.guest, "198.51.100.10", 80) != "ok"
    assert tcp_exchange(lab.guest, "198.51.100.11", 443) != "ok"


def test_a_dead_resolver_answers_nothing_and_lets_nothing_out(lab):
    lab.tamed.kill()
    start = len(lab.sniffer.frames)
    for server in ("203.0.113.53", "203.0.113.66", "8.8.8.8"):
        for transport in ("udp", "tcp"):
            assert ask(lab, server, "www.names.example", transport, timeout=0.4) is None
    assert not to_port_53(lab, start)
    # What was resolved before stays open.
    assert tcp_exchange(lab.guest, "198.51.100.10", 443) == "ok"
    lab.tamed.start()
    eventually(lambda: ask(lab, "203.0.113.53", "www.names.example", "udp", timeout=1), "an answer of the new daemon")
    assert tcp_exchange(lab.guest, "198.51.100.10", 443) == "ok"


def test_without_a_resolver_on_the_wire_port_53_is_judged_as_any_other():
    """The control: the questions that the other tests never see beyond the uplink are seen here."""
    with Lab("routed") as lab:
        lab.tamed = lab.daemon(POLICY, names_config().replace('["static", "dns"]', '["static"]'))
        lab.wait_filtered(lab.tamed)
        start = len(lab.sniffer.frames)
        ask(lab, "203.0.113.53", "www.names.example", "udp", timeout=0.4)
        ask(lab, "2001:db8:bad::53", "www.names.example", "tcp", timeout=0.4)
        ask(lab, "203.0.113.66", "www.names.example", "udp", timeout=0.4)  # which no rule allows
        seen = eventually(lambda: len(to_port_53(lab, start)) >= 2 and to_port_53(lab, start), "allowed questions beyond the uplink")
        assert not any(b"\xcb\x00\x71\x42" in frame for frame in seen)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("server", ["203.0.113.53", "2001:db8:bad::53"])
def test_a_question_in_fragments_does_not_leave(lab, server, protocol):
    """Policy allows the server on every port; to another port the same fragments arrive."""
    source = GUEST6 if ":" in server else GUEST4
    kind = b"\x86\xdd" if ":" in server else b"\x08\x00"

    def fragments(number, port):
        packet = whole_packet(protocol, source, server, 4000, port, lab.marker(number) + bytes(60))
        return [(number, lab.gateway_mac + lab.guest_mac + kind + part) for part in fragmented(packet)]

    arrived = lab.send_and_watch(fragments(1, 53) + fragments(2, 54), sentinel=lab.udp_frame(lab.SENTINEL, server, source=source))
    assert arrived == {2}
