"""Nothing escapes by a checksum that is filled in after the verdict.

A sender may leave the checksum to the device and say where it belongs: a virtual machine in the header of its tap's frames, a
container by PACKET_VNET_HDR. The kernel believes nearly any place, and the payload chooses the value, so that a packet judged as
one thing would leave as another. Each shape is sent twice: first without the filter, and must arrive rewritten as was wanted; then
under the allowlist, where it must not arrive at all. What honest stacks leave to the device passes.
"""

import errno
import socket
import struct

import pytest

from daemon import INTERFACES_CONFIG
from cgroup_lab import SOURCE4, SOURCE6, CgroupLab
from lab import ALLOWED4, ALLOWED6, DENIED4, GUEST4, GUEST6, PORTED4, PORTED6, Lab
from packets import PacketSocket, TunDevice, checksum, finish_checksums, raw_ip4, vnet_header
from workloads import Inhabitant

VLAN, UNREAD = 5, 0x88CC  # a tag that the wire looks through, an EtherType that it lets pass
CONFIG = INTERFACES_CONFIG + f"vlans = [{VLAN}]\nethertypes = [{UNREAD}]\n"
E4, E6, ARP = 0x0800, 0x86DD, 0x0806
WAYS = ["routed", "bridged", "bridged-tagged", "tap", "tun"]


# ---- packets ----------------------------------------------------------------------------------------------------------------

def partial_sum(content):
    return ~checksum(content) & 0xFFFF


def chosen(packet, start, value):
    """`packet` with its last two bytes such that the checksum of all from `start` on comes out as `value`."""
    assert (len(packet) - start) % 2 == 0
    packet = packet[:-2] + b"\0\0"
    return packet[:-2] + struct.pack("!H", ((~value & 0xFFFF) - partial_sum(packet[start:])) % 0xFFFF)


def raw_ip6(source, destination, protocol, payload):
    return (struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + socket.inet_pton(socket.AF_INET6, source) +
            socket.inet_pton(socket.AF_INET6, destination) + payload)


def ip(destination, protocol, payload, source=None):
    if ":" in destination:
        return raw_ip6(source or GUEST6, destination, protocol, payload)
    return raw_ip4(source or GUEST4, destination, protocol, payload)


def later_fragment4(destination, payload):
    packet = ip(destination, 17, payload)
    head = packet[:6] + struct.pack("!H", 64) + packet[8:10] + b"\0\0" + packet[12:20]
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(port, payload, check=0):
    return struct.pack("!HHHH", 4000, port, 8 + len(payload), check) + payload


def tcp(port, payload, check=0):
    return struct.pack("!HHIIBBHHH", 4000, port, 1, 1, 5 << 4, 0x10, 512, check, 0) + payload


def pseudo(destination, protocol, length):
    if ":" in destination:
        return (socket.inet_pton(socket.AF_INET6, GUEST6) + socket.inet_pton(socket.AF_INET6, destination) +
                struct.pack("!II", length, protocol))
    return socket.inet_aton(GUEST4) + socket.inet_aton(destination) + struct.pack("!HH", protocol, length)


def unfinished(destination, protocol, segment, offset):
    """A packet as a stack leaves it: in the checksum's place stands the sum of the pseudo header."""
    total = partial_sum(pseudo(destination, protocol, len(segment)))
    return ip(destination, protocol, segment[:offset] + struct.pack("!H", total) + segment[offset + 2:])


def padded(marker):
    return marker + b"padding and sum."


OPTIONS6 = bytes([17, 0, 1, 4, 0, 0, 0, 0])  # destination options before UDP
ARP_QUESTION = struct.pack("!HHBBH6s4s6s4s", 1, E4, 6, 4, 1, bytes(6), socket.inet_aton(GUEST4), bytes(6),
                           socket.inet_aton("198.18.1.1"))


class Shape:
    """`packet(marker)`, by its sender to be completed: the sum of all from `start` on (counted from the network header, as
    everywhere here) belongs at `start + offset`."""

    def __init__(self, name, kind, packet, start, offset, value=None, only=WAYS, gso=(0, 0), arriving=1):
        self.name, self.kind, self.packet, self.start, self.offset = name, kind, packet, start, offset
        self.value, self.only, self.gso, self.arriving = value, only, gso, arriving

    def begins(self, head):
        """Where in the frame the sum begins."""
        return (len(head) + 2 if head else 0) + self.start

    def frame(self, marker, head):
        """`head`: two addresses, and a tag if there is to be one; nothing for a device without Ethernet."""
        link = head[:12] + struct.pack("!H", self.kind) if head else b""
        frame = link + self.packet(marker)
        if self.value is not None:
            frame = chosen(frame, len(link) + self.start, self.value)
        tag = head[12:]
        return vnet_header((self.begins(head), self.offset), self.gso) + frame[:len(head) and 12] + tag + frame[len(head) and 12:]


BRIDGED = ["bridged", "bridged-tagged"]
# Judged as what policy allows; rewritten into something else.
CRAFTED = [
    Shape("udp4-port", E4, lambda m: ip(PORTED4, 17, udp(8000, padded(m))), 20, 2, 22),
    Shape("udp4-source-port", E4, lambda m: ip(PORTED4, 17, udp(8000, padded(m))), 20, 0, 22),
    Shape("udp4-length", E4, lambda m: ip(ALLOWED4, 17, udp(9, padded(m))), 20, 4, 8),
    Shape("tcp4-port", E4, lambda m: ip(PORTED4, 6, tcp(443, padded(m))), 20, 2, 22),
    Shape("tcp4-port-summed-from-the-addresses", E4, lambda m: ip(PORTED4, 6, tcp(443, padded(m))), 12, 10, 22),
    Shape("tcp4-flags", E4, lambda m: ip(PORTED4, 6, tcp(443, padded(m))), 20, 12, 0x5002),
    Shape("tcp4-at-udp's-field", E4, lambda m: ip(PORTED4, 6, tcp(443, padded(m))), 20, 6, 0x1234),
    Shape("icmp4-type", E4, lambda m: ip(ALLOWED4, 1, struct.pack("!BBHHH", 8, 0, 0, 1, 1) + padded(m)), 20, 0, 0x0500),
    Shape("udp4-destination", E4, lambda m: ip(ALLOWED4, 17, udp(9, padded(m))), 14, 2, 0xCB00),
    Shape("udp4-fragment-field", E4, lambda m: ip(ALLOWED4, 17, udp(9, padded(m))), 6, 0, 1),
    Shape("udp4-protocol", E4, lambda m: ip(ALLOWED4, 17, udp(9, padded(m))), 8, 0, 0x4006),
    Shape("ipip4-destination", E4, lambda m: ip(ALLOWED4, 4, ip(ALLOWED4, 17, udp(9, padded(m)))), 14, 2, 0xCB00),
    Shape("later-fragment4-destination", E4, lambda m: later_fragment4(ALLOWED4, padded(m)), 14, 2, 0xCB00),
    Shape("udp6-port", E6, lambda m: ip(PORTED6, 17, udp(8000, padded(m))), 40, 2, 22),
    Shape("tcp6-port", E6, lambda m: ip(PORTED6, 6, tcp(443, padded(m))), 40, 2, 22),
    Shape("udp6-destination", E6, lambda m: ip(ALLOWED6, 17, udp(9, padded(m))), 24, 4, 0x0BAD),
    Shape("udp6-destination-at-tcp's-field", E6, lambda m: ip(ALLOWED6, 17, udp(9, padded(m))), 12, 16, 0x0BAD),
    Shape("tcp6-next-header", E6, lambda m: ip(ALLOWED6, 6, tcp(9, padded(m))), 0, 6, 0x1140, only=BRIDGED),
    Shape("udp6-options-port", E6, lambda m: ip(PORTED6, 60, OPTIONS6 + udp(8000, padded(m))), 48, 2, 22),
    Shape("udp6-options-next-header", E6, lambda m: ip(ALLOWED6, 60, OPTIONS6 + udp(9, padded(m))), 40, 0, 0x0600),
    Shape("later-fragment6-next-header", E6, lambda m: ip(ALLOWED6, 44, struct.pack("!BBHI", 17, 0, 512, 7) + padded(m)), 40, 0,
          0x0600),
    # What a bridge passes on unread, by the frame's own header.
    Shape("ethertype-of-ip", E4, lambda m: ip(ALLOWED4, 17, udp(9, padded(m))), -14, 12, 0x8847, only=BRIDGED),
    Shape("unread-becomes-ip", UNREAD, lambda m: ip(DENIED4, 17, udp(9, padded(m))), -14, 12, E4, only=BRIDGED),
    Shape("arp-becomes-ip", ARP, lambda m: ARP_QUESTION + m + b"....", -14, 12, E4, only=BRIDGED),
    Shape("arp-payload", ARP, lambda m: ARP_QUESTION + m + b"....", 8, 8, 0xCB00, only=BRIDGED),
]

GSO_TCP4, GSO_UFO, GSO_TCP6, GSO_USO = 1, 3, 4, 5
MANY = 750  # markers, 3000 bytes: each segment has some
VXLAN = bytes([8, 0, 0, 0, 0, 0, 5, 0]) + bytes(12) + struct.pack("!H", E4)
# What honest senders leave to the device.
HONEST = [
    Shape("udp4", E4, lambda m: unfinished(PORTED4, 17, udp(8000, padded(m)), 6), 20, 6),
    Shape("udp6", E6, lambda m: unfinished(PORTED6, 17, udp(8000, padded(m)), 6), 40, 6),
    Shape("udp6-behind-options", E6, lambda m: ip(PORTED6, 60, OPTIONS6 + udp(8000, padded(m))), 48, 6),
    Shape("tcp4", E4, lambda m: unfinished(PORTED4, 6, tcp(443, padded(m)), 16), 20, 16),
    Shape("tcp6", E6, lambda m: unfinished(PORTED6, 6, tcp(443, padded(m)), 16), 40, 16),
    Shape("icmp6", E6, lambda m: unfinished(ALLOWED6, 58, struct.pack("!BBHHH", 128, 0, 0, 1, 1) + padded(m), 2), 40, 2),
    Shape("udplite4", E4, lambda m: ip(ALLOWED4, 136, udp(9, padded(m))), 20, 6),
    Shape("sctp4", E4, lambda m: ip(ALLOWED4, 132, struct.pack("!HHII", 1, 9, 1, 0) + padded(m)), 20, 8),
    Shape("dccp4", E4, lambda m: ip(ALLOWED4, 33, struct.pack("!HHBBHI", 1, 9, 4, 0, 0, 0) + padded(m)), 20, 6),
    Shape("tcp4-segments", E4, lambda m: unfinished(PORTED4, 6, tcp(443, m * MANY), 16), 20, 16, gso=(GSO_TCP4, 1000), arriving=3),
    Shape("tcp6-segments", E6, lambda m: unfinished(PORTED6, 6, tcp(443, m * MANY), 16), 40, 16, gso=(GSO_TCP6, 1000), arriving=3),
    Shape("udp4-segments", E4, lambda m: unfinished(PORTED4, 17, udp(8000, m * MANY), 6), 20, 6, gso=(GSO_USO, 1000), arriving=3),
    Shape("udp6-segments", E6, lambda m: unfinished(PORTED6, 17, udp(8000, m * MANY), 6), 40, 6, gso=(GSO_USO, 1000), arriving=3),
    Shape("udp4-fragments", E4, lambda m: unfinished(ALLOWED4, 17, udp(9, m * MANY), 6), 20, 6, gso=(GSO_UFO, 1000), arriving=4),
    Shape("udp6-fragments", E6, lambda m: unfinished(ALLOWED6, 17, udp(9, m * MANY), 6), 40, 6, gso=(GSO_UFO, 1000), arriving=4),
    # A tunnel of the guest's own: the outer headers are complete, the inner checksum is left.
    Shape("vxlan4", E4, lambda m: ip(ALLOWED4, 17, udp(4789, VXLAN + unfinished(DENIED4, 17, udp(9, padded(m)), 6))), 70, 6),
    Shape("ipip4", E4, lambda m: ip(ALLOWED4, 4, unfinished(DENIED4, 6, tcp(9, padded(m)), 16)), 40, 16),
    Shape("gre6", E6, lambda m: ip(ALLOWED6, 47, struct.pack("!HH", 0, E4) + unfinished(DENIED4, 17, udp(9, padded(m)), 6)), 64, 6),
    Shape("unread", UNREAD, lambda m: unfinished(DENIED4, 17, udp(9, padded(m)), 6), 20, 6, only=BRIDGED),
]


def is_complete(shape, frame):
    """Does the checksum, where the sender wanted it, agree with what it covers?"""
    start = 14 + shape.start
    destination, protocol = (DENIED4, 17) if shape.kind == UNREAD or shape.name in ("vxlan4", "gre6") else (None, None)
    if destination is None:
        six = shape.kind == E6
        destination = socket.inet_ntop(socket.AF_INET6 if six else socket.AF_INET, frame[38:54] if six else frame[30:34])
        protocol = frame[20] if six else frame[23]
    if shape.name == "ipip4":
        destination, protocol = DENIED4, 6
    return checksum(pseudo(destination, protocol, len(frame) - start) + frame[start:]) == 0


# ---- senders ----------------------------------------------------------------------------------------------------------------

class Way:
    """Whoever sends behind a virtio header: a packet socket in the guest, or this process that holds the device."""

    def __init__(self, lab, name):
        self.name, self.lab = name, lab
        if name in ("tap", "tun"):
            self.device = "h" + name
            sender = TunDevice(lab.host, self.device, kind=name, vnet_header=True)
            self.send = sender.write
            lab.host.batch(f"link set {self.device} up")
            self.head = lab.host.mac(self.device) + lab.guest_mac if name == "tap" else b""
        else:
            self.device = "h1"
            sender = PacketSocket(lab.guest, "g1", vnet_header=True)
            self.send = sender.send
            self.head = lab.gateway_mac + lab.guest_mac
        lab.cleanups.callback(sender.close)
        if name.endswith("tagged"):
            self.head += struct.pack("!HH", 0x8100, VLAN)
        finish_checksums(lab.host, "uplink")

    def filter(self):
        daemon = self.lab.daemon(config=CONFIG)
        self.lab.wait_filtered(daemon)
        self.lab.wait_filtered(daemon, self.device)
        return daemon

    def arriving(self, shapes):
        """Sends each; what arrives of it, in the shapes' order."""
        lab, start = self.lab, len(self.lab.sniffer.frames)
        markers = [lab.marker(0x5A00 + number) for number in range(len(shapes))]  # no zeros: padding has those
        for marker, shape in zip(markers, shapes):
            try:
                self.send(shape.frame(marker, self.head))
            except OSError as error:
                # Not all kernels refuse it: within 20 bytes of the frame's beginning no sum can begin.
                if error.errno != errno.EINVAL or shape.begins(self.head) >= 20:
                    raise
        lab.flush(lambda: lab.sender.send(lab.sentinel_frame()))
        frames = [bytes(frame) for frame in lab.sniffer.frames[start:]]
        return [[frame for frame in frames if marker in frame] for marker in markers]


@pytest.fixture(params=WAYS)
def way(request):
    with Lab("bridged" if request.param.startswith("bridged") else "routed") as lab:
        yield Way(lab, request.param)


def test_no_checksum_is_written_over_what_was_judged(way):
    shapes = [shape for shape in CRAFTED if way.name in shape.only]
    for shape, frames in zip(shapes, way.arriving(shapes)):
        if not frames and shape.begins(way.head) < 20:
            continue
        at = 14 + shape.start + shape.offset
        assert [frame[at:at + 2].hex() for frame in frames] == [f"{shape.value:04x}"], (
            f"{shape.name}: must arrive rewritten when nothing filters, or it proves nothing")
    daemon = way.filter()
    assert [shape.name for shape, frames in zip(shapes, way.arriving(shapes)) if frames] == []
    daemon.expect_log("headers contradict each other")
    print(f"{way.name}: {len(shapes)} packets that would be rewritten after the verdict: none arrives")


def test_what_honest_senders_leave_to_the_device_passes(way):
    shapes = [shape for shape in HONEST if way.name in shape.only]

    def check(when):
        for shape, frames in zip(shapes, way.arriving(shapes)):
            assert len(frames) == shape.arriving, f"{shape.name}, {when}"
            if not shape.name.endswith("fragments") and not shape.name.startswith(("sctp", "dccp", "udplite", "udp6-behind")):
                assert all(is_complete(shape, frame) for frame in frames), f"{shape.name}, {when}"

    check("unfiltered")
    way.filter()
    check("filtered")


# ---- a packet socket in a filtered cgroup ------------------------------------------------------------------------------------

def test_nor_by_a_packet_socket_in_a_filtered_cgroup():
    """In the host's namespace the uplink guard is what sees it."""
    port4 = Shape("udp4-port", E4, lambda m: ip(PORTED4, 17, udp(8000, padded(m)), SOURCE4), 20, 2, 22)
    destination6 = Shape("udp6-destination", E6, lambda m: ip(ALLOWED6, 17, udp(9, padded(m)), SOURCE6), 24, 4, 0x0BAD)
    honest4 = Shape("honest4", E4, lambda m: ip(PORTED4, 17, udp(8000, padded(m)), SOURCE4), 20, 6)
    honest6 = Shape("honest6", E6, lambda m: ip(PORTED6, 17, udp(8000, padded(m)), SOURCE6), 40, 6)
    with CgroupLab() as lab:
        finish_checksums(lab.host, "uplink")
        workload = lab.workload(lab.start_filter())
        head = lab.gateway_mac + lab.guest_mac

        def arrives(cgroup, shape):
            with Inhabitant(lab.host, cgroup) as inhabitant:
                assert inhabitant.do("socket", 0, "packet", 4) == "ok 0"
                assert inhabitant.do("vnet-header", 0).startswith("ok")
                return lab.arrives(lambda mark: inhabitant.do("frame", 0, "uplink", shape.frame(
                    bytes.fromhex(mark)[:4], head).hex()))[0]

        for shape in (port4, destination6):
            assert arrives(lab.outside, shape), "unfiltered it must arrive, or it proves nothing"
            assert not arrives(workload, shape), shape.name
        for shape in (honest4, honest6):
            assert arrives(workload, shape), shape.name
