"""Every shape of packet that a workload might try, as a table.

A shape's `make(place)` gives the packets to send. `reaches` names the variants in which the shape really arrives beyond the
uplink when nothing filters: a shape that cannot arrive proves nothing, so the control run checks exactly that.
`ip` shapes begin with the network header and are sent on Ethernet and on tun; `frame` shapes are whole Ethernet frames and only
make sense where the host bridges.
"""

import dataclasses
import logging
import socket
import struct
from typing import Callable

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption, IPOption_LSRR, IPOption_RR, IPOption_SSRR  # noqa: E402
from scapy.layers.inet6 import (ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop,  # noqa: E402
                                PadN)
from scapy.layers.l2 import ARP, GRE, LLC, SNAP, STP, Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.layers.vxlan import VXLAN  # noqa: E402
from scapy.packet import Raw  # noqa: E402

from lab import (ALLOWED4, ALLOWED6, DENIED4, DENIED6, GATEWAY4, GATEWAY6, GUEST4, GUEST6, HOLE4, HOLE6, PORTED4,  # noqa: E402
                 PORTED6)


ROUTED, BRIDGED, TUN = "routed", "bridged", "tun"
EVERYWHERE = frozenset({ROUTED, BRIDGED, TUN})


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a shape is sent: `mark` is the four bytes that tell it from all other traffic."""
    mark: bytes
    gateway_mac: bytes

    @property
    def data(self):
        return Raw(self.mark + b"escape of a shape, padded to some length")

    @property
    def source4(self):
        """For shapes too short for a payload: an IPv4 source that is the mark."""
        return socket.inet_ntoa(self.mark)

    @property
    def source6(self):
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, GUEST6)[:12] + self.mark)

    @property
    def mac(self):
        return b"\x02\x5c" + self.mark


@dataclasses.dataclass(frozen=True)
class Shape:
    name: str
    make: Callable[[Place], list]
    reaches: frozenset = EVERYWHERE
    layer: str = "ip"

    def frames(self, place, variant):
        """What is written to the device, as bytes."""
        packets = self.make(place)
        packets = packets if isinstance(packets, list) else [packets]
        result = []
        for packet in packets:
            content = bytes(packet)
            if self.layer == "ip" and variant != TUN:
                ethertype = b"\x86\xdd" if isinstance(packet, IPv6) or content[:1] and content[0] >> 4 == 6 else b"\x08\x00"
                content = place.gateway_mac + place.mac + ethertype + content
            result.append(content)
        return result


SHAPES = []


def shape(name, make, reaches=EVERYWHERE, layer="ip"):
    if isinstance(reaches, str):
        reaches = frozenset(reaches.split())
    SHAPES.append(Shape(name, make, frozenset(reaches), layer))


def frame(name, make, reaches="bridged"):
    shape(name, make, reaches, "frame")


def raw4(place, ihl=5, total=None, version=4, protocol=17, destination=DENIED4, body=None, fragment=0, options=b"", cut=None,
         source=None):
    """An IPv4 packet with each field as told, its header checksum right."""
    body = struct.pack("!HHHH", 1234, 9999, 8 + 44, 0) + bytes(place.data) if body is None else body
    total = 20 + len(options) + len(body) if total is None else total
    head = struct.pack("!BBHHHBBH4s4s", version << 4 | ihl, 0, total, 7, fragment, 64, protocol, 0,
                       socket.inet_aton(source or GUEST4), socket.inet_aton(destination)) + options
    total_sum = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total_sum >> 16:
        total_sum = (total_sum & 0xFFFF) + (total_sum >> 16)
    packet = head[:10] + struct.pack("!H", ~total_sum & 0xFFFF) + head[12:] + body
    return Raw(packet if cut is None else packet[:cut])


def raw6(place, next_header, body, destination=DENIED6, version=6, length=None, source=None, cut=None, hops=64):
    packet = struct.pack("!IHBB", version << 28, len(body) if length is None else length, next_header, hops) + socket.inet_pton(
        socket.AF_INET6, source or GUEST6) + socket.inet_pton(socket.AF_INET6, destination) + body
    return Raw(packet if cut is None else packet[:cut])


def to4(place, destination=DENIED4, **fields):
    return IP(src=GUEST4, dst=destination, **fields)


def to6(place, destination=DENIED6, **fields):
    return IPv6(src=GUEST6, dst=destination, **fields)


# ---- plain transport to an address that no rule allows, and to a hole in an allowed prefix ------------------------------

for label, four, six in (("denied", DENIED4, DENIED6), ("hole", HOLE4, HOLE6)):
    for flags in ("S", "A", "R", "F", "SA", "", "FPU", "SF"):
        shape(f"tcp-{flags or 'null'}-{label}-4", lambda p, d=four, f=flags: to4(p, d) / TCP(sport=40000, dport=443, flags=f) / p.data)
        shape(f"tcp-{flags or 'null'}-{label}-6", lambda p, d=six, f=flags: to6(p, d) / TCP(sport=40000, dport=443, flags=f) / p.data)
    for port in (0, 53, 123, 443, 853, 9999):
        shape(f"udp-{port}-{label}-4", lambda p, d=four, q=port: to4(p, d) / UDP(sport=40000, dport=q) / p.data)
        shape(f"udp-{port}-{label}-6", lambda p, d=six, q=port: to6(p, d) / UDP(sport=40000, dport=q) / p.data)
    shape(f"dhcp-ports-unicast-{label}-4", lambda p, d=four: to4(p, d) / UDP(sport=68, dport=67) / p.data)
    shape(f"dhcp-ports-unicast-{label}-6", lambda p, d=six: to6(p, d) / UDP(sport=546, dport=547) / p.data)
    shape(f"dhcp-server-ports-{label}-4", lambda p, d=four: to4(p, d) / UDP(sport=67, dport=68) / p.data)

for kind in (0, 3, 4, 5, 8, 11, 12, 13, 17, 42):
    shape(f"icmp-{kind}", lambda p, k=kind: to4(p) / ICMP(type=k) / p.data)
for kind in (1, 2, 3, 4, 128, 129, 138, 139, 144, 155, 160, 200):
    shape(f"icmpv6-{kind}", lambda p, k=kind: to6(p) / Raw(
        icmp6(k, 0, struct.pack("!I", 0) + bytes(p.data), GUEST6, DENIED6)))


def icmp6(kind, code, body, source, destination):
    """ICMPv6 with its checksum over the pseudo header."""
    message = struct.pack("!BBH", kind, code, 0) + body
    pseudo = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination) + struct.pack(
        "!II", len(message), 58)
    data = pseudo + message + b"\0" * (len(message) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:]


# ---- ports: only tcp/443 and udp/8000-8100 of this address are allowed --------------------------------------------------

for port in (442, 444, 80, 22, 0, 65535):
    shape(f"port-tcp-{port}-4", lambda p, q=port: to4(p, PORTED4) / TCP(sport=443, dport=q, flags="S") / p.data)
    shape(f"port-tcp-{port}-6", lambda p, q=port: to6(p, PORTED6) / TCP(sport=443, dport=q, flags="S") / p.data)
for port in (443, 7999, 8101, 53):
    shape(f"port-udp-{port}-4", lambda p, q=port: to4(p, PORTED4) / UDP(sport=8000, dport=q) / p.data)
    shape(f"port-udp-{port}-6", lambda p, q=port: to6(p, PORTED6) / UDP(sport=8000, dport=q) / p.data)
shape("port-icmp-4", lambda p: to4(p, PORTED4) / ICMP() / p.data)
shape("port-icmp-6", lambda p: to6(p, PORTED6) / ICMPv6EchoRequest(data=bytes(p.data)))
for protocol in (0, 4, 33, 41, 47, 50, 51, 132, 136, 253):
    # The bytes where ports would be say 443.
    shape(f"port-protocol-{protocol}-4", lambda p, n=protocol: to4(p, PORTED4, proto=n) / Raw(struct.pack("!HH", 443, 443) + bytes(p.data)))
shape("port-later-fragment-4", lambda p: to4(p, PORTED4, proto=6, frag=8) / Raw(struct.pack("!HH", 443, 443) + bytes(p.data)))
shape("port-later-fragment-udp-4", lambda p: to4(p, PORTED4, proto=17, frag=8) / Raw(struct.pack("!HH", 8000, 8000) + bytes(p.data)))
shape("port-later-fragment-6", lambda p: to6(p, PORTED6) / IPv6ExtHdrFragment(offset=8, nh=6, m=0) / Raw(
    struct.pack("!HH", 443, 443) + bytes(p.data)))
shape("port-tiny-first-fragment-4", lambda p: to4(p, PORTED4, proto=6, flags="MF") / Raw(struct.pack("!HH", 443, 443) + p.mark))
shape("port-tiny-first-fragment-6", lambda p: to6(p, PORTED6) / IPv6ExtHdrFragment(offset=0, nh=6, m=1) / Raw(
    struct.pack("!HH", 443, 443) + p.mark))
shape("port-overlap-offset-1-4", lambda p: to4(p, PORTED4, proto=6, frag=1) / Raw(struct.pack("!HH", 443, 443) + bytes(p.data)))


# ---- every other protocol number ----------------------------------------------------------------------------------------

for number in range(256):
    if number in (1, 6, 17):
        continue  # their own shapes are above
    shape(f"protocol-{number}-4", lambda p, n=number: raw4(p, protocol=n, body=b"\x00\x16\x00\x16" + bytes(p.data)))
for number in range(256):
    if number in (0, 6, 17, 43, 44, 58, 60):
        continue  # headers that need a form of their own are below
    shape(f"next-header-{number}-6", lambda p, n=number: raw6(p, n, b"\x00\x16\x00\x16" + bytes(p.data)))


# ---- tunnels --------------------------------------------------------------------------------------------------------------

def inner4(p):
    return IP(src=GUEST4, dst=ALLOWED4) / UDP(sport=1, dport=2) / p.data


def inner6(p):
    return IPv6(src=GUEST6, dst=ALLOWED6) / UDP(sport=1, dport=2) / p.data


def inner_ether(p):
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / inner4(p)


TUNNELS4 = {
    "gre-4": lambda p: GRE() / inner4(p),
    "gre-key-6": lambda p: GRE(key_present=1, key=7) / inner6(p),
    "gretap": lambda p: GRE(proto=0x6558) / inner_ether(p),
    "ipip": lambda p: inner4(p),
    "6in4": lambda p: inner6(p),
    "vxlan": lambda p: UDP(sport=4789, dport=4789) / VXLAN(vni=5) / inner_ether(p),
    "geneve": lambda p: UDP(sport=6081, dport=6081) / Raw(struct.pack("!BBHI", 0, 0, 0x6558, 5 << 8)) / inner_ether(p),
    "teredo": lambda p: UDP(sport=3544, dport=3544) / inner6(p),
    "mpls-in-udp": lambda p: UDP(sport=1, dport=6635) / Raw(struct.pack("!I", 16 << 12 | 0x1FF)) / inner4(p),
    "gtp-u": lambda p: UDP(sport=2152, dport=2152) / Raw(struct.pack("!BBHI", 0x30, 255, 60, 1)) / inner4(p),
    "esp-in-udp": lambda p: UDP(sport=4500, dport=4500) / Raw(struct.pack("!II", 0x1234, 1)) / p.data,
    "wireguard": lambda p: UDP(sport=51820, dport=51820) / Raw(b"\4\0\0\0" + bytes(12)) / p.data,
}
TUNNEL_PROTOCOLS = {"ipip": 4, "6in4": 41, "gre-4": 47, "gre-key-6": 47, "gretap": 47}
for tunnel, make in TUNNELS4.items():
    number = TUNNEL_PROTOCOLS.get(tunnel, 17)
    for label, four, six in (("denied", DENIED4, DENIED6), ("ported", PORTED4, PORTED6)):
        shape(f"tunnel-{tunnel}-{label}-over-4", lambda p, m=make, n=number, d=four: to4(p, d, proto=n) / m(p))
        shape(f"tunnel-{tunnel}-{label}-over-6", lambda p, m=make, n=number, d=six: to6(p, d, nh=n) / m(p))


# ---- fragments ------------------------------------------------------------------------------------------------------------

for label, offset, more in (("first", 0, 1), ("middle", 5, 1), ("last", 9, 0), ("offset-1", 1, 0), ("far", 8000, 0)):
    for protocol in (1, 6, 17):
        shape(f"fragment-{label}-{protocol}-4", lambda p, o=offset, m=more, n=protocol: to4(
            p, proto=n, frag=o, flags="MF" if m else 0) / Raw(struct.pack("!HH", 443, 443) + bytes(p.data)))
    for protocol in (6, 17, 58):
        shape(f"fragment-{label}-{protocol}-6", lambda p, o=offset, m=more, n=protocol: to6(p) / IPv6ExtHdrFragment(
            offset=o, m=m, nh=n) / Raw(struct.pack("!HH", 443, 443) + bytes(p.data)))
shape("fragment-tiny-8-bytes-4", lambda p: to4(p, proto=6, flags="MF") / Raw(struct.pack("!HH", 1, 443) + p.mark))
shape("fragment-tiny-8-bytes-6", lambda p: to6(p) / IPv6ExtHdrFragment(m=1, nh=6) / Raw(struct.pack("!HH", 1, 443) + p.mark))
shape("fragment-atomic-6", lambda p: to6(p) / IPv6ExtHdrFragment(nh=17) / UDP(sport=1, dport=9) / p.data)
shape("fragment-dont-and-more-4", lambda p: to4(p, proto=17, flags="MF+DF") / Raw(struct.pack("!HHHH", 1, 9, 60, 0) + bytes(p.data)))
shape("fragment-reserved-bit-4", lambda p: to4(p, flags="evil") / UDP(sport=1, dport=9) / p.data)
shape("fragment-pair-4", lambda p: [
    to4(p, proto=17, flags="MF", id=77) / Raw(struct.pack("!HHHH", 1, 9, 56, 0) + bytes(p.data)[:16]),
    to4(p, proto=17, frag=3, id=77) / Raw(bytes(p.data)[:32])])
shape("fragment-overlap-allowed-then-denied-port-4", lambda p: [
    # The later one rewrites the ports that the first one showed (to 22); both are of an address with a port rule.
    to4(p, PORTED4, proto=6, frag=1, id=78) / Raw(bytes(p.data)[:24]),
    to4(p, PORTED4, proto=6, frag=2, id=78) / Raw(bytes(p.data)[:24])])

# ---- IPv4 options -----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "record-route": lambda: IPOption_RR(routers=["0.0.0.0"] * 3),
    "timestamp": lambda: IPOption(b"\x44\x0c\x05\x00" + bytes(8)),
    "router-alert": lambda: IPOption(b"\x94\x04\x00\x00"),
    "security": lambda: IPOption(b"\x82\x0b" + bytes(9)),
    "stream-id": lambda: IPOption(b"\x88\x04\x00\x07"),
    "nops": lambda: IPOption(b"\x01"),
    "unknown": lambda: IPOption(b"\xde\x04\x00\x00"),
}
for option, make in OPTIONS.items():
    shape(f"option-{option}", lambda p, m=make: to4(p, options=[m()]) / UDP(sport=1, dport=9) / p.data)
for label, kind in (("lsrr", IPOption_LSRR), ("ssrr", IPOption_SSRR)):
    shape(f"{label}-to-denied-by-gateway", lambda p, k=kind: IP(src=GUEST4, dst=GATEWAY4, options=[k(pointer=4, routers=[DENIED4])])
          / UDP(sport=1, dport=9) / p.data, "routed bridged tun" if label == "lsrr" else "bridged")
    shape(f"{label}-to-allowed-by-denied", lambda p, k=kind: IP(src=GUEST4, dst=DENIED4, options=[k(pointer=4, routers=[ALLOWED4])])
          / UDP(sport=1, dport=9) / p.data, EVERYWHERE if label == "lsrr" else "bridged")
    shape(f"{label}-to-allowed", lambda p, k=kind: IP(src=GUEST4, dst=ALLOWED4, options=[k(pointer=4, routers=[DENIED4])])
          / UDP(sport=1, dport=9) / p.data, EVERYWHERE if label == "lsrr" else "bridged")
    shape(f"{label}-after-nops", lambda p, k=kind: IP(src=GUEST4, dst=GATEWAY4, options=[
        IPOption(b"\x01"), IPOption(b"\x01"), k(pointer=4, routers=[DENIED4])]) / UDP(sport=1, dport=9) / p.data,
        EVERYWHERE if label == "lsrr" else "bridged")
shape("option-runs-over-the-header", lambda p: raw4(p, ihl=6, destination=ALLOWED4, options=b"\x07\x28\x04\x00"), "bridged")
shape("option-of-length-0", lambda p: raw4(p, ihl=6, destination=ALLOWED4, options=b"\x07\x00\x04\x00"), "bridged")
shape("option-of-length-1", lambda p: raw4(p, ihl=6, destination=ALLOWED4, options=b"\xde\x01\x00\x00"), "bridged")

# ---- IPv6 extension headers -------------------------------------------------------------------------------------------------

UDP6 = {"sport": 1, "dport": 9}
EXTENSIONS = {
    "hop-by-hop": lambda: IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")]),
    "destination": lambda: IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")]),
    "hop-by-hop-destination": lambda: IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")]) / IPv6ExtHdrDestOpt(
        options=[PadN(optdata=b"\0\0\0\0")]),
    "destination-fragment": lambda: IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")]) / IPv6ExtHdrFragment(m=1),
}
for extension, make in EXTENSIONS.items():
    shape(f"extension-{extension}", lambda p, m=make: to6(p) / m() / UDP(**UDP6) / p.data)
    shape(f"extension-{extension}-port", lambda p, m=make: to6(p, PORTED6) / m() / UDP(sport=8000, dport=9) / p.data)
shape("extension-authentication", lambda p: raw6(p, 51, struct.pack("!BBHII", 17, 4, 0, 1, 1) + bytes(12) + struct.pack(
    "!HHHH", 1, 9, 52, 0) + bytes(p.data)))
shape("extension-mobility", lambda p: raw6(p, 135, struct.pack("!BBBBHH", 17, 0, 5, 0, 0, 0) + struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data)))
shape("extension-shim6", lambda p: raw6(p, 140, struct.pack("!BB", 17, 0) + bytes(6) + struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data)))


def destination_options(count, last=17):
    chain = b""
    for i in range(count):
        chain += struct.pack("!BB", 60 if i + 1 < count else last, 0) + b"\x01\x04\0\0\0\0"
    return chain


for count in (2, 7, 9, 20, 100):
    shape(f"extension-{count}-deep", lambda p, n=count: raw6(p, 60, destination_options(n) + struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data)))
shape("extension-9-deep-to-ported", lambda p: raw6(p, 60, destination_options(9) + struct.pack("!HHHH", 8000, 22, 52, 0) + bytes(p.data), PORTED6))
shape("extension-100-deep-to-allowed", lambda p: raw6(p, 60, destination_options(100) + struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data), ALLOWED6))
shape("extension-long-to-ported", lambda p: raw6(p, 60, struct.pack("!BB", 6, 130) + 4 * (b"\x01\xff" + bytes(255)) + b"\x01\x10" + bytes(
    16) + struct.pack("!HHIIBBHHH", 443, 22, 0, 0, 0x50, 2, 0, 0, 0) + bytes(p.data), PORTED6))
shape("extension-runs-over-the-end", lambda p: raw6(p, 60, struct.pack("!BB", 17, 40) + b"\x01\x04\0\0\0\0" + bytes(p.data), ALLOWED6))
shape("extension-hop-by-hop-second", lambda p: raw6(p, 60, struct.pack("!BB", 0, 0) + b"\x01\x04\0\0\0\0" + struct.pack(
    "!BB", 17, 0) + b"\x01\x04\0\0\0\0" + struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data)))
shape("extension-fragment-cut-short", lambda p: raw6(p, 44, struct.pack("!BBH", 17, 0, 0), PORTED6, source=p.source6))


def routing_header(p, kind, left, addresses, next_header=17):
    return struct.pack("!BBBBI", next_header, 2 * len(addresses), kind, left, 0) + b"".join(
        socket.inet_pton(socket.AF_INET6, a) for a in addresses) + struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data)


def segment_routing(p, destination, first):
    """Type 4 (RFC 8754): the list is from the last segment to the first; `destination` is where the router sends it on to."""
    return struct.pack("!BBBBBBH", 17, 4, 4, 1, 1, 0, 0) + socket.inet_pton(socket.AF_INET6, destination) + socket.inet_pton(
        socket.AF_INET6, first) + struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data)


for kind in (0, 1, 2, 3, 4, 5, 253):
    shape(f"routing-{kind}-denied", lambda p, k=kind: raw6(p, 43, routing_header(p, k, 1, [ALLOWED6])))
    shape(f"routing-{kind}-allowed-by-segments", lambda p, k=kind: raw6(p, 43, routing_header(p, k, 1, [DENIED6]), ALLOWED6))
shape("segment-routing-by-gateway", lambda p: raw6(p, 43, segment_routing(p, DENIED6, GATEWAY6), GATEWAY6))
shape("segment-routing-behind-hop-by-hop", lambda p: raw6(
    p, 0, struct.pack("!BB", 43, 0) + b"\x01\x04\0\0\0\0" + segment_routing(p, DENIED6, GATEWAY6), GATEWAY6))
shape("segment-routing-behind-destination-options", lambda p: raw6(
    p, 60, struct.pack("!BB", 43, 0) + b"\x01\x04\0\0\0\0" + segment_routing(p, DENIED6, GATEWAY6), GATEWAY6))
shape("routing-segments-0-denied", lambda p: raw6(p, 43, routing_header(p, 0, 0, [ALLOWED6])))
shape("routing-runs-over-the-end", lambda p: raw6(p, 43, struct.pack("!BBBBI", 17, 200, 4, 1, 0) + bytes(p.data), ALLOWED6))
shape("jumbogram", lambda p: raw6(p, 0, struct.pack("!BBBBI", 17, 0, 0xC2, 4, 70000) + struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data), length=0), "bridged")

# ---- neighbour discovery beyond the link --------------------------------------------------------------------------------

ND = {
    "router-solicitation": (133, lambda: bytes(4)),
    "router-advertisement": (134, lambda: bytes(12)),
    "neighbour-solicitation": (135, lambda: bytes(4) + socket.inet_pton(socket.AF_INET6, DENIED6)),
    "neighbour-advertisement": (136, lambda: bytes(4) + socket.inet_pton(socket.AF_INET6, DENIED6)),
    "redirect": (137, lambda: bytes(4) + 2 * socket.inet_pton(socket.AF_INET6, DENIED6)),
    "mld-query": (130, lambda: bytes(20)),
    "mld-report": (131, lambda: bytes(20)),
    "mld-done": (132, lambda: bytes(20)),
    "mldv2-report": (143, lambda: bytes(4)),
    "inverse-solicitation": (141, lambda: bytes(4)),
    "certification-path": (148, lambda: bytes(4)),
    "multicast-router": (151, lambda: bytes(4)),
}
for name, (kind, body) in ND.items():
    for hops in (255, 64):
        for label, six in (("denied", DENIED6), ("hole", HOLE6)):
            shape(f"nd-{name}-{label}-hops-{hops}", lambda p, k=kind, b=body, h=hops, d=six: raw6(
                p, 58, icmp6(k, 0, b() + bytes(p.data), GUEST6, d), d, hops=h))
    for scope, group in (("site", "ff05::2"), ("global", "ff0e::1")):
        shape(f"nd-{name}-{scope}-multicast", lambda p, k=kind, b=body, g=group: raw6(
            p, 58, icmp6(k, 0, b() + bytes(p.data), GUEST6, g), g, hops=255), "bridged")
shape("nd-to-ported", lambda p: raw6(p, 58, icmp6(135, 0, bytes(20) + bytes(p.data), GUEST6, PORTED6), PORTED6, hops=255))

# ---- addresses that stand for others ------------------------------------------------------------------------------------

DENIED4_BYTES = socket.inet_aton(DENIED4)


def embedded(head, tail=b""):
    return socket.inet_ntop(socket.AF_INET6, (head + DENIED4_BYTES + tail).ljust(16, b"\0"))


EMBEDDED = {
    "nat64": (embedded(bytes.fromhex("0064ff9b") + bytes(8)), EVERYWHERE),
    "nat64-local": (embedded(bytes.fromhex("0064ff9b0001") + bytes(6)), EVERYWHERE),
    "6to4": (embedded(b"\x20\x02", b"\0\1" + bytes(7) + b"\1"), EVERYWHERE),
    "teredo": (embedded(bytes.fromhex("200100000001")), EVERYWHERE),
    "v4-mapped": (embedded(bytes(10) + b"\xff\xff"), EVERYWHERE),
    "v4-compatible": (embedded(bytes(12)), EVERYWHERE),
    "isatap": (embedded(socket.inet_pton(socket.AF_INET6, DENIED6)[:8] + bytes.fromhex("00005efe")), EVERYWHERE),
}
for name, (address, where) in EMBEDDED.items():
    shape(f"embedded-{name}-udp", lambda p, a=address: to6(p, a) / UDP(**UDP6) / p.data, where)
    shape(f"embedded-{name}-tcp", lambda p, a=address: to6(p, a) / TCP(sport=1, dport=443, flags="S") / p.data, where)
shape("mapped-of-an-allowed-address", lambda p: to6(p, "::ffff:" + ALLOWED4) / UDP(**UDP6) / p.data)
shape("nat64-of-a-private-address", lambda p: to6(p, "64:ff9b::a00:7") / UDP(**UDP6) / p.data)
shape("nat64-of-the-metadata-address", lambda p: to6(p, "64:ff9b::a9fe:a9fe") / UDP(**UDP6) / p.data)

# ---- spoofed sources --------------------------------------------------------------------------------------------------------

for label, source, reaches in (("neighbour", "198.18.2.2", EVERYWHERE), ("internet", "203.0.113.9", EVERYWHERE),
                               ("private", "10.1.2.3", EVERYWHERE), ("zero", "0.0.0.0", "bridged"), ("loopback", "127.0.0.1", EVERYWHERE),
                               ("broadcast", "255.255.255.255", "bridged"), ("multicast", "224.0.0.5", "bridged")):
    shape(f"spoofed-{label}-4", lambda p, s=source: IP(src=s, dst=DENIED4) / UDP(sport=1, dport=9) / p.data, reaches)
for label, source, reaches in (("neighbour", "2001:db8:0:2::2", EVERYWHERE), ("unspecified", "::", "bridged"),
                               ("link-local", "fe80::1234", "bridged"), ("loopback", "::1", "bridged"),
                               ("mapped", "::ffff:198.18.1.2", EVERYWHERE), ("multicast", "ff02::1", "bridged")):
    shape(f"spoofed-{label}-6", lambda p, s=source: IPv6(src=s, dst=DENIED6) / UDP(**UDP6) / p.data, reaches)
shape("spoofed-mapped-source-to-allowed", lambda p: IPv6(src="::ffff:198.18.1.2", dst=ALLOWED6) / UDP(**UDP6) / p.data)

# ---- broadcast and multicast ------------------------------------------------------------------------------------------------

for label, group in (("limited-broadcast", "255.255.255.255"), ("subnet-broadcast", "198.18.1.255"), ("all-hosts", "224.0.0.1"),
                     ("mdns", "224.0.0.251"), ("ssdp", "239.255.255.250"), ("global-multicast", "233.252.0.1")):
    # The point-to-point tun knows no broadcast of its subnet: it is an address like any other there.
    reaches = "bridged tun" if label == "subnet-broadcast" else "bridged"
    shape(f"{label}-udp-4", lambda p, g=group: to4(p, g) / UDP(sport=1, dport=9) / p.data, reaches)
    shape(f"{label}-icmp-4", lambda p, g=group: to4(p, g) / ICMP() / p.data, reaches)
shape("igmp-report", lambda p: raw4(p, protocol=2, destination="224.0.0.22", body=b"\x22\0\0\0\0\0\0\0" + p.mark, source=GUEST4), "bridged")
shape("broadcast-dns-4", lambda p: to4(p, "255.255.255.255") / UDP(sport=68, dport=53) / p.data, "bridged")
shape("broadcast-dhcp-from-another-port", lambda p: to4(p, "255.255.255.255") / UDP(sport=1234, dport=67) / p.data, "bridged")
shape("broadcast-dhcp-over-tcp", lambda p: to4(p, "255.255.255.255") / TCP(sport=68, dport=67) / p.data, "bridged")
shape("broadcast-dhcp-later-fragment", lambda p: to4(p, "255.255.255.255", proto=17, frag=4) / p.data, "bridged")
for label, group in (("all-nodes", "ff02::1"), ("all-routers", "ff02::2"), ("mdns", "ff02::fb"), ("llmnr", "ff02::1:3"),
                     ("site", "ff05::2"), ("organization", "ff08::1"), ("global", "ff0e::1"), ("interface", "ff01::1")):
    shape(f"multicast-{label}-udp-6", lambda p, g=group: to6(p, g) / UDP(**UDP6) / p.data, "bridged")
    shape(f"multicast-{label}-echo-6", lambda p, g=group: to6(p, g) / ICMPv6EchoRequest(data=bytes(p.data)), "bridged")
shape("link-local-udp-6", lambda p: IPv6(src="fe80::1234", dst="fe80::5678") / UDP(**UDP6) / p.data, "bridged")
shape("link-local-tcp-6", lambda p: IPv6(src="fe80::1234", dst="fe80::5678") / TCP(sport=1, dport=443, flags="S") / p.data, "bridged")
shape("dhcpv6-ports-to-site-multicast", lambda p: to6(p, "ff05::1:3") / UDP(sport=546, dport=547) / p.data, "bridged")
shape("dhcpv6-from-another-port", lambda p: IPv6(src="fe80::1234", dst="ff02::1:2") / UDP(sport=1234, dport=547) / p.data, "bridged")

# ---- malformed and truncated: to an allowed address, since what cannot be read must not pass whatever policy says ----------

for version in (0, 3, 5, 6, 15):
    frame(f"malformed-version-{version}-in-ipv4-type", lambda p, v=version: Raw(p.gateway_mac + p.mac + b"\x08\x00" + bytes(
        raw4(p, version=v, destination=ALLOWED4))))
for version in (0, 4, 5, 7, 15):
    frame(f"malformed-version-{version}-in-ipv6-type", lambda p, v=version: Raw(p.gateway_mac + p.mac + b"\x86\xdd" + bytes(
        raw6(p, 17, struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data), ALLOWED6, version=v))))
for ihl in (0, 1, 4):
    shape(f"malformed-ihl-{ihl}", lambda p, n=ihl: raw4(p, ihl=n, destination=ALLOWED4), "bridged")
shape("malformed-ihl-beyond-the-total", lambda p: raw4(p, ihl=15, total=40, destination=ALLOWED4), "bridged")
shape("malformed-ihl-beyond-the-frame", lambda p: raw4(p, ihl=15, destination=ALLOWED4, body=b"", cut=24, source=p.source4), "bridged")
for total in (0, 1, 19):
    shape(f"malformed-total-{total}", lambda p, n=total: raw4(p, total=n, destination=ALLOWED4), "bridged")
shape("malformed-total-beyond-the-frame", lambda p: raw4(p, total=1400, destination=ALLOWED4), "bridged")
shape("malformed-total-20-udp", lambda p: raw4(p, total=20, destination=ALLOWED4, source=p.source4))
shape("malformed-tcp-offset-4", lambda p: raw4(p, protocol=6, destination=ALLOWED4, body=struct.pack(
    "!HHIIBBHHH", 1, 443, 0, 0, 0x40, 2, 0, 0, 0) + bytes(p.data)))
shape("malformed-tcp-offset-beyond", lambda p: raw4(p, protocol=6, destination=ALLOWED4, body=struct.pack(
    "!HHIIBBHHH", 1, 443, 0, 0, 0xF0, 2, 0, 0, 0) + p.mark))
for size in (0, 1, 2, 4, 7):
    shape(f"truncated-udp-{size}-4", lambda p, n=size: raw4(p, destination=ALLOWED4, body=struct.pack("!HHHH", 1, 9, 8, 0)[:n], source=p.source4))
    shape(f"truncated-udp-{size}-6", lambda p, n=size: raw6(p, 17, struct.pack("!HHHH", 1, 9, 8, 0)[:n], ALLOWED6, source=p.source6))
for size in (0, 4, 8, 19):
    shape(f"truncated-tcp-{size}-4", lambda p, n=size: raw4(p, protocol=6, destination=ALLOWED4, body=struct.pack(
        "!HHIIBBHHH", 1, 443, 0, 0, 0x50, 2, 0, 0, 0)[:n], source=p.source4))
    shape(f"truncated-tcp-{size}-6", lambda p, n=size: raw6(p, 6, struct.pack(
        "!HHIIBBHHH", 1, 443, 0, 0, 0x50, 2, 0, 0, 0)[:n], ALLOWED6, source=p.source6))
for size in (0, 1, 4):
    shape(f"truncated-icmp-{size}-4", lambda p, n=size: raw4(p, protocol=1, destination=ALLOWED4, body=b"\x08\0\xf7\xff"[:n], source=p.source4))
for size in (0, 1, 4, 10, 15, 19):
    frame(f"truncated-ipv4-{size}", lambda p, n=size: Raw(p.gateway_mac + p.mac + b"\x08\x00" + bytes(raw4(p, destination=ALLOWED4))[:n]))
for size in (0, 1, 4, 20, 39):
    frame(f"truncated-ipv6-{size}", lambda p, n=size: Raw(p.gateway_mac + p.mac + b"\x86\xdd" + bytes(
        raw6(p, 17, bytes(p.data), ALLOWED6))[:n]))
shape("malformed-payload-length-beyond-6", lambda p: raw6(p, 17, struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data), ALLOWED6, length=1400), "bridged")
shape("malformed-payload-length-0-udp-6", lambda p: raw6(p, 17, struct.pack("!HHHH", 1, 9, 52, 0) + bytes(p.data), ALLOWED6, length=0, source=p.source6))
shape("bad-checksum-4", lambda p: to4(p, chksum=0x1234) / UDP(sport=1, dport=9) / p.data, "bridged")
shape("ttl-1-4", lambda p: to4(p, ttl=1) / UDP(sport=1, dport=9) / p.data, "bridged")

# ---- link layer -------------------------------------------------------------------------------------------------------------


def ether(p, kind=None, destination=None):
    fields = {} if kind is None else {"type": kind}
    return Ether(src=p.mac, dst=destination or p.gateway_mac, **fields)


for label, four in (("allowed", ALLOWED4), ("denied", DENIED4)):
    frame(f"vlan-5-{label}", lambda p, d=four: ether(p) / Dot1Q(vlan=5) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"vlan-0-{label}", lambda p, d=four: ether(p) / Dot1Q(vlan=0, prio=3) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"vlan-1-{label}", lambda p, d=four: ether(p) / Dot1Q(vlan=1) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"vlan-4095-{label}", lambda p, d=four: ether(p) / Dot1Q(vlan=4095) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"qinq-{label}", lambda p, d=four: ether(p) / Dot1AD(vlan=5) / Dot1Q(vlan=6) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"vlan-0-in-vlan-0-{label}", lambda p, d=four: ether(p) / Dot1Q(vlan=0) / Dot1Q(vlan=0) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"service-tag-alone-{label}", lambda p, d=four: ether(p) / Dot1AD(vlan=5) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"vlan-9100-{label}", lambda p, d=four: ether(p, 0x9100) / Raw(struct.pack("!HH", 5, 0x0800)) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"llc-snap-ipv4-{label}", lambda p, d=four: snap(p, 0x0800, to4(p, d) / UDP(sport=1, dport=9) / p.data))
    frame(f"mpls-{label}", lambda p, d=four: ether(p, 0x8847) / Raw(struct.pack("!I", 16 << 12 | 0x1FF)) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"pppoe-{label}", lambda p, d=four: ether(p, 0x8864) / Raw(struct.pack("!BBHHH", 0x11, 0, 1, 74, 0x0021)) / to4(p, d) / UDP(sport=1, dport=9) / p.data)
    frame(f"macsec-{label}", lambda p, d=four: ether(p, 0x88E5) / Raw(bytes(6)) / to4(p, d) / UDP(sport=1, dport=9) / p.data)


def snap(p, code, body):
    content = bytes(LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=code) / body)
    return Raw(p.gateway_mac + p.mac + struct.pack("!H", len(content)) + content)


def llc(p, dsap, ssap, destination=None):
    content = bytes([dsap, ssap, 3]) + bytes(p.data)
    return Raw((destination or p.gateway_mac) + p.mac + struct.pack("!H", len(content)) + content)


frame("vlan-5-arp", lambda p: ether(p) / Dot1Q(vlan=5) / ARP(op=1, psrc=GUEST4, pdst=GATEWAY4) / p.data)
frame("vlan-0-ipv6", lambda p: ether(p) / Dot1Q(vlan=0) / to6(p, ALLOWED6) / UDP(**UDP6) / p.data)
frame("vlan-5-cut-short", lambda p: Raw(p.gateway_mac + p.mac + b"\x81\x00\x00"), "")  # no bridge forwards it
frame("llc-spanning-tree", lambda p: Raw(bytes.fromhex("0180c2000000") + p.mac + b"\x00\x26" + b"\x42\x42\x03" + bytes(STP())))
for sap in (0x00, 0x06, 0x42, 0xAA, 0xE0, 0xF0, 0xFE, 0xFF):
    frame(f"llc-{sap:02x}", lambda p, s=sap: llc(p, s, s))
frame("llc-broadcast", lambda p: llc(p, 0xF0, 0xF0, b"\xff" * 6))
frame("llc-snap-arp", lambda p: snap(p, 0x0806, ARP(op=1, psrc=GUEST4, pdst=GATEWAY4) / p.data))
frame("llc-length-0", lambda p: Raw(p.gateway_mac + p.mac + b"\0\0" + bytes(p.data)))
frame("raw-802.3", lambda p: Raw(p.gateway_mac + p.mac + b"\x00\x30\xff\xff" + bytes(p.data)))
frame("lldp", lambda p: Raw(bytes.fromhex("0180c200000e") + p.mac + b"\x88\xcc" + bytes(p.data)))
frame("slow-protocols-unicast", lambda p: ether(p, 0x8809) / p.data)
frame("802.1x-unicast", lambda p: ether(p, 0x888E) / p.data)
frame("802.1x-group", lambda p: Raw(bytes.fromhex("0180c2000003") + p.mac + b"\x88\x8e" + bytes(p.data)))
frame("rarp", lambda p: ether(p, 0x8035) / ARP(op=3) / p.data)
frame("wake-on-lan", lambda p: ether(p, 0x0842, b"\xff" * 6) / p.data)
frame("loopback-protocol", lambda p: ether(p, 0x9000) / p.data)
frame("udp-denied-to-broadcast-mac", lambda p: ether(p, None, b"\xff" * 6) / to4(p) / UDP(sport=1, dport=9) / p.data)
frame("udp-denied-to-group-mac", lambda p: ether(p, None, bytes.fromhex("01005e000001")) / to4(p) / UDP(sport=1, dport=9) / p.data)
frame("udp6-denied-to-group-mac", lambda p: ether(p, None, bytes.fromhex("333300000001")) / to6(p) / UDP(**UDP6) / p.data)
frame("arp-cut-short", lambda p: Raw(p.gateway_mac + p.mac + b"\x08\x06" + bytes(ARP(op=1, psrc=GUEST4, pdst=GATEWAY4))[:20]))
frame("arp-of-another-hardware", lambda p: ether(p) / ARP(hwtype=6, op=1, psrc=GUEST4, pdst=GATEWAY4) / p.data)
frame("arp-for-ipv6", lambda p: ether(p, 0x0806) / Raw(struct.pack("!HHBBH", 1, 0x86DD, 6, 16, 1) + bytes(44)) / p.data)
frame("empty-frame", lambda p: Raw(p.gateway_mac + p.mac + b"\x88\xb5"))

assert len({s.name for s in SHAPES}) == len(SHAPES), "two shapes share a name"
