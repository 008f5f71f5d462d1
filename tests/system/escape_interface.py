"""Nothing escapes from a filtered interface: routed, bridged, and a tun device without an Ethernet header.

Each shape is sent twice from inside the guest. First without the filter: it must arrive beyond the uplink, or the table must say
that it cannot. Then under an allowlist: none may arrive.
"""

import contextlib
import socket
import struct
import subprocess

import pytest

from daemon import INTERFACES_CONFIG
from lab import ALLOWED4, ALLOWED6, DENIED4, DENIED6, GUEST4, GUEST6, HOLE4, HOLE6, METADATA4, METADATA6, PORTED4, PORTED6, Lab
from packets import PacketRing, TunDevice, raw_udp4
from shapes import BRIDGED, ROUTED, SHAPES, TUN, Place
from traffic import ping, tcp_exchange, udp_exchange

VARIANTS = [ROUTED, BRIDGED, TUN]


def applicable(variant):
    return [s for s in SHAPES if s.layer == "ip" or variant == BRIDGED]


class Journey:
    """All shapes of a variant in one go, without and with the filter; what arrived, by name."""

    def __init__(self, variant, with_filter=True):
        self.variant = variant
        with Lab(variant) as lab:
            self.control = self._send(lab)
            self.log = ""
            if with_filter:
                daemon = lab.daemon()
                lab.wait_filtered(daemon)
                self.escaped = self._send(lab)
                self.ring_escaped = self._send(lab, ring=True) if variant != TUN else set()
                self.log = daemon.log()

    def _send(self, lab, ring=False):
        frames = []
        for number, shape in enumerate(SHAPES):
            if shape not in applicable(self.variant):
                continue
            place = Place(lab.marker(number), lab.gateway_mac)
            frames += [(number, frame) for frame in shape.frames(place, self.variant)]
        with contextlib.ExitStack() as cleanup:
            sender = lab.sender
            if ring:
                sender = PacketRing(lab.guest, "g1")
                cleanup.callback(sender.close)
            arrived = lab.send_and_watch(frames, sender=sender)
        return {SHAPES[number].name for number in arrived if number < len(SHAPES)}


@pytest.fixture(scope="module")
def journeys():
    cache = {}

    def get(variant, with_filter=True):
        key = (variant, with_filter)
        if (variant, True) in cache:
            return cache[(variant, True)]
        if key not in cache:
            cache[key] = Journey(variant, with_filter)
        return cache[key]

    return get


@pytest.mark.parametrize("variant", VARIANTS)
def test_control_each_shape_arrives_when_nothing_filters(journeys, variant):
    arrived = journeys(variant, with_filter=False).control
    expected = {s.name for s in applicable(variant) if variant in s.reaches}
    missing, surplus = sorted(expected - arrived), sorted(arrived - expected)
    assert not missing, f"must arrive unfiltered, or they prove nothing: {missing}"
    assert not surplus, f"arrive though the table says they cannot; correct the table: {surplus}"
    print(f"{variant}: {len(applicable(variant))} shapes, {len(arrived)} of them arrive when nothing filters")


@pytest.mark.parametrize("variant,shape", [pytest.param(v, s, id=f"{v}-{s.name}") for v in VARIANTS for s in applicable(v)
                                           if v in s.reaches])
def test_shape_does_not_escape(journeys, variant, shape):
    journey = journeys(variant)
    assert shape.name in journey.control
    assert shape.name not in journey.escaped
    assert shape.name not in journey.ring_escaped, "escaped as a non-linear skb"


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_at_all_escapes(journeys, variant):
    """Also not what could not arrive without the filter."""
    journey = journeys(variant)
    assert sorted(journey.escaped) == [] and sorted(journey.ring_escaped) == []
    ring = "" if variant == TUN else ", and as many from a transmit ring"
    print(f"{variant}: {len(applicable(variant))} shapes under the allowlist{ring}: none arrives")


# ---- EtherTypes: all of them ----------------------------------------------------------------------------------------------

READ = {0x0800, 0x0806, 0x86DD}  # what the filter reads; their own shapes are in the table


def test_no_other_ethertype_escapes():
    """Values up to 1500 are lengths: LLC."""
    types = [t for t in range(0xFFFF) if t not in READ]
    with Lab(BRIDGED) as lab:
        frames = [(t, lab.gateway_mac + lab.guest_mac + struct.pack("!H", t) + b"\0\0\0\0" + lab.marker(t)) for t in types]
        control = lab.send_and_watch(frames)
        assert control >= set(types) - {0x8100, 0x88A8}, "the control run lost frames"
        daemon = lab.daemon()
        lab.wait_filtered(daemon)
        assert sorted(map(hex, lab.send_and_watch(frames) & set(types))) == []
    print(f"{len(types)} EtherTypes and LLC lengths: none arrives")


# ---- devices that a virtual machine monitor writes to ---------------------------------------------------------------------

def device_shapes(lab, tun):
    """Frames with a lying header in front: (number, sender arguments, bytes)."""
    ip6 = bytes.fromhex("60000000000f1140") + socket.inet_pton(socket.AF_INET6, GUEST6) + socket.inet_pton(
        socket.AF_INET6, DENIED6) + struct.pack("!HHHH", 1, 9, 15, 0) + b"..."
    if tun:
        return [
            (1, {"protocol": 0x0800}, raw_udp4("198.18.1.2", DENIED4, 1, 9, lab.marker(1))),
            (2, {"protocol": 0x86DD}, ip6 + lab.marker(2)),
            # An allowed IPv4 destination announced as something else, and something else announced as IP.
            (3, {"protocol": 0x86DD}, raw_udp4("198.18.1.2", ALLOWED4, 1, 9, lab.marker(3))),
            (4, {"protocol": 0x0800}, ip6 + lab.marker(4)),
            (5, {"protocol": 0x8847}, b"\0\1\1\xff" + raw_udp4("198.18.1.2", ALLOWED4, 1, 9, lab.marker(5))),
            (6, {"protocol": 0x8100}, b"\0\5\x08\0" + raw_udp4("198.18.1.2", ALLOWED4, 1, 9, lab.marker(6))),
            (7, {"protocol": 0x8100}, b"\0\0\x08\0" + raw_udp4("198.18.1.2", DENIED4, 1, 9, lab.marker(7))),
        ]
    shapes = []
    number = 1
    for linear in (0, 14, 15, 20, 33, 34, 38, 42):
        for head, packet in ((b"\x08\0", raw_udp4("198.18.1.2", DENIED4, 1, 9, lab.marker(number) + bytes(400))),
                             (b"\x86\xdd", None), (b"\x81\0\0\5\x08\0", raw_udp4(
                                 "198.18.1.2", ALLOWED4, 1, 9, lab.marker(number + 2) + bytes(400)))):
            if packet is None:
                packet = ip6[:4] + struct.pack("!H", 12 + 400) + ip6[6:40] + struct.pack("!HHHH", 1, 9, 412, 0) + lab.marker(
                    number) + bytes(400)
            shapes.append((number, {"linear": linear}, lab.host.mac("htap") + lab.guest_mac + head + packet))
            number += 1
    return shapes


class DeviceLab(Lab):
    """The tun variant with a tap beside the tun; both are held by this process."""

    def _build_tun(self):
        super()._build_tun()
        self.tap = TunDevice(self.host, "htap", kind="tap", vnet_header=True)
        self.cleanups.callback(self.tap.close)
        self.host.batch("link set htap up")


@pytest.mark.parametrize("kind", ["tun", "tap"])
def test_lying_device_headers_do_not_escape(kind):
    with DeviceLab(TUN) as lab:
        sender = lab.sender if kind == "tun" else lab.tap

        def send_all():
            start = len(lab.sniffer.frames)
            for _, arguments, content in device_shapes(lab, kind == "tun"):
                sender.send(content, **arguments)
            lab.flush(lambda: lab.sender.send(lab.sentinel_frame()))
            return lab.arrived(start) - {lab.SENTINEL}

        control = send_all()
        if kind == "tun":
            assert {1, 2} <= control
        else:
            assert {n for n, _, content in device_shapes(lab, False) if content[12:14] != b"\x81\0"} <= control
        daemon = lab.daemon()
        lab.wait_filtered(daemon)
        lab.wait_filtered(daemon, "htap")
        assert sorted(send_all()) == []
        print(f"{kind}: {len(device_shapes(lab, kind == 'tun'))} frames behind lying headers: none arrives")


# ---- what policy allows works -------------------------------------------------------------------------------------------

@pytest.fixture(params=[ROUTED, BRIDGED])
def filtered(request):
    """A guest under the allowlist, the internet answering, neighbours still to be found."""
    with Lab(request.param) as lab:
        lab.serve()
        lab.filter = lab.daemon()
        lab.wait_filtered(lab.filter)
        for namespace in (lab.guest, lab.host, lab.internet):
            namespace.ip("neigh", "flush", "all", "nud", "permanent")
            namespace.ip("neigh", "flush", "all")
        yield lab


A4, A6, P4, P6 = ALLOWED4, ALLOWED6, PORTED4, PORTED6
D4, D6 = DENIED4, DENIED6


def test_allowed_traffic_works(filtered):
    """Also: neighbours are resolved through the filter, by ARP and by ND."""
    for address in (A4, A6):
        assert ping(filtered.guest, address, timeout=5)
        assert tcp_exchange(filtered.guest, address, 80) == "ok"
        assert udp_exchange(filtered.guest, address, 9999) == "ok"
        assert udp_exchange(filtered.guest, address, 9999, bytes(4000)) == "ok", "fragments to an allowed address"
        assert tcp_exchange(filtered.guest, address, 443, bytes(50000)) in ("ok", "other data")
    for address in (P4, P6):
        assert tcp_exchange(filtered.guest, address, 443) == "ok"
        assert udp_exchange(filtered.guest, address, 8050) == "ok"


def test_a_denial_is_an_error_not_a_timeout(filtered):
    for address in (D4, D6, HOLE4, HOLE6):
        assert tcp_exchange(filtered.guest, address, 443, timeout=20) in (
            "ECONNREFUSED", "EHOSTUNREACH", "EACCES", "ENETUNREACH", "ECONNRESET"), address
        assert udp_exchange(filtered.guest, address, 9999, timeout=5) in (
            "ECONNREFUSED", "EHOSTUNREACH", "EACCES", "ENETUNREACH", "EPERM"), address
    for address in (P4, P6):
        assert tcp_exchange(filtered.guest, address, 80, timeout=20) not in ("ok", "timeout")


def test_the_log_names_address_and_reason_of_a_denial(filtered):
    tcp_exchange(filtered.guest, D4, 443)
    filtered.filter.expect_log(rf"{D4}.*not on the allowlist|not on the allowlist.*{D4}")


@pytest.mark.parametrize("six", [False, True], ids=["4", "6"])
def test_replies_to_inbound_connections_pass(filtered, six):
    """From an address that the guest may not dial."""
    outside = D6 if six else D4
    guest_address = GUEST6 if six else GUEST4
    family = socket.AF_INET6 if six else socket.AF_INET
    listener = filtered.guest.socket(family, socket.SOCK_STREAM)
    with listener:
        listener.bind((guest_address, 7000))
        listener.listen(4)
        listener.settimeout(10)
        client = filtered.internet.socket(family, socket.SOCK_STREAM)
        with client:
            client.bind((outside, 0))
            client.settimeout(10)
            client.connect((guest_address, 7000))
            server, _ = listener.accept()
            with server:
                server.settimeout(10)
                client.sendall(b"question")
                assert server.recv(100) == b"question"
                server.sendall(b"answer")
                assert client.recv(100) == b"answer"
    # The guest's address answers a ping from there, and UDP by the same ports only.
    with filtered.internet.inside():
        done = subprocess.run(["ping", "-n", "-c", "1", "-W", "5", "-I", outside, guest_address], capture_output=True)
    assert done.returncode == 0
    server = filtered.guest.socket(family, socket.SOCK_DGRAM)
    client = filtered.internet.socket(family, socket.SOCK_DGRAM)
    other = filtered.internet.socket(family, socket.SOCK_DGRAM)
    with server, client, other:
        server.bind((guest_address, 7001))
        server.settimeout(10)
        client.bind((outside, 7002))
        client.settimeout(10)
        other.bind((outside, 7003))
        client.sendto(b"question", (guest_address, 7001))
        data, asker = server.recvfrom(100)
        server.sendto(b"elsewhere", (outside, 7003))
        server.sendto(b"answer", asker)
        assert client.recv(100) == b"answer"
        other.settimeout(0.3)
        with pytest.raises(OSError):
            other.recv(100)


def test_dhcp_exchange(filtered):
    """Discover and offer by broadcast, IPv6 by link-scope multicast; the server is whoever shares the link."""
    far, far_device = (filtered.host, "h1") if filtered.variant == ROUTED else (filtered.internet, "i0")
    server = far.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client = filtered.guest.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        for end, device, port in ((server, far_device, 67), (client, "g1", 68)):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            end.bind(("", port))
            end.settimeout(10)
        client.sendto(b"discover", ("255.255.255.255", 67))
        assert server.recv(100) == b"discover"
        server.sendto(b"offer", ("255.255.255.255", 68))
        assert client.recv(100) == b"offer"
    server = far.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    client = filtered.guest.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with server, client:
        index = far.ifindex(far_device)
        server.bind(("::", 547))
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff02::1:2") + struct.pack(
            "I", index))
        client.bind(("::", 546))
        server.settimeout(10)
        client.settimeout(10)

        def solicited():
            client.sendto(b"solicit", ("ff02::1:2", 547, 0, filtered.guest.ifindex("g1")))
            return server.recvfrom(100)

        data, asker = solicited()
        assert data == b"solicit" and asker[0].startswith("fe80")
        server.sendto(b"advertise", asker)
        assert client.recv(100) == b"advertise"


@pytest.mark.parametrize("variant", [ROUTED, BRIDGED])
@pytest.mark.parametrize("mode,expected", [
    ("allowlist", {"allowed", "hole-free"}),
    ("denylist", {"allowed", "hole-free", "unmentioned"}),
    ("block-all", set()),
    ("disabled", {"allowed", "hole-free", "unmentioned", "denied"}),
])
def test_modes_and_denials_inside_everything(variant, mode, expected):
    """allow 0.0.0.0/0 beside a denied address is not an open door; each mode lets through just what it says."""
    policy = f"""
[[policy]]
name = "modes"
match = {{ class = "vm" }}
mode = "{mode}"
[[policy.allow]]
cidrs = ["198.51.100.0/24", "2001:db8:a::/48"]
[[policy.deny]]
cidrs = ["{D4}/32", "{D6}/128"]
"""
    goals = {"allowed": (A4, A6), "hole-free": (HOLE4, HOLE6), "unmentioned": (P4, P6), "denied": (D4, D6)}
    with Lab(variant) as lab:
        lab.serve()
        daemon = lab.daemon(policy)
        lab.wait_filtered(daemon, mode=["block-all", "allowlist", "denylist", "disabled"].index(mode))
        for name, addresses in goals.items():
            for address in addresses:
                answer = udp_exchange(lab.guest, address, 9999, timeout=0.5 if name not in expected else 3)
                assert (answer == "ok") == (name in expected), (name, address, answer)


def test_everything_allowed_but_one_address():
    policy = f"""
[[policy]]
name = "all-but-one"
match = {{ class = "vm" }}
mode = "allowlist"
[[policy.allow]]
cidrs = ["0.0.0.0/0", "::/0"]
[[policy.deny]]
cidrs = ["{D4}/32", "{D6}/128"]
"""
    with Lab(ROUTED) as lab:
        lab.serve()
        lab.wait_filtered(lab.daemon(policy))
        for address in (A4, A6, P4, P6):
            assert udp_exchange(lab.guest, address, 9999) == "ok"
        for address in (D4, D6, "64:ff9b::cb00:7142", "2002:cb00:7142::1"):
            assert udp_exchange(lab.guest, address, 9999, timeout=0.5) != "ok", address


@pytest.mark.parametrize("rules,may_overrule,passes", [
    ('cidrs = ["0.0.0.0/0", "::/0"]', True, False),
    (f'cidrs = ["{METADATA4}/32", "{METADATA6}/128"]', False, False),
    (f'cidrs = ["{METADATA4}/32", "{METADATA6}/128"]', True, True),
], ids=["allowing-everything", "a-source-that-may-not", "as-specific-and-may"])
def test_the_floor_holds_unless_the_operator_overrules_it_as_specifically(rules, may_overrule, passes):
    policy = f'''
[[policy]]
name = "floor"
match = {{ class = "vm" }}
mode = "allowlist"
[[policy.allow]]
cidrs = ["198.51.100.0/24", "2001:db8:a::/48"]
[[policy.allow]]
{rules}
'''
    config = INTERFACES_CONFIG.replace('library  = "static"', 'library  = "static"\noverrides_floor = ' + (
        "true" if may_overrule else "false"))
    with Lab(ROUTED) as lab:
        lab.serve()
        lab.wait_filtered(lab.daemon(policy, config))
        for address in (METADATA4, METADATA6):
            assert (udp_exchange(lab.guest, address, 9999, timeout=3 if passes else 0.5) == "ok") == passes
        assert udp_exchange(lab.guest, A4, 9999) == "ok"


def test_control_metadata_answers_when_nothing_filters():
    with Lab(ROUTED) as lab:
        lab.serve()
        for address in (METADATA4, METADATA6, D4, D6, "64:ff9b::cb00:7142", "2002:cb00:7142::1"):
            assert udp_exchange(lab.guest, address, 9999) == "ok", address
