"""Whole packets: what sends them, from where a guest or a virtual machine does, and what records them beyond the host."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import threading
import time

from machine import eventually


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def raw_ip4(source, destination, protocol, payload, ttl=64):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, ttl, protocol, 0, socket.inet_aton(source),
                       socket.inet_aton(destination))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def raw_udp4(source, destination, source_port, destination_port, payload, ttl=64):
    return raw_ip4(source, destination, 17, struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0) + payload,
                   ttl)


def vnet_header(checksum=None, gso=(0, 0), linear=0):
    """What a sender leaves to the device (virtio 1.2, 5.1.6): `checksum` is where it begins and where it belongs from there;
    `gso` is type and size of the segments; `linear` is hdr_len."""
    return struct.pack("<BBHHHH", 1 if checksum else 0, gso[0], linear, gso[1], *(checksum or (0, 0)))


def finish_checksums(namespace, device):
    """The device no longer takes packets whose checksum is left to it, so that what is sent can be seen (ETHTOOL_STXCSUM)."""
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        value = ctypes.create_string_buffer(struct.pack("II", 0x17, 0))
        fcntl.ioctl(probe, 0x8946, struct.pack("16sP16x", device.encode(), ctypes.addressof(value)))


def whole_packet(protocol, source, destination, source_port, destination_port, payload=b"", tcp_flags=2, echo_request=True):
    """An IP packet with its checksums. `protocol` is "udp", "tcp" or "echo", whose identifier is the destination port."""
    six = ":" in source
    if protocol == "udp":
        number, head, at = 17, struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0), 6
    elif protocol == "tcp":
        number, head, at = 6, struct.pack("!HHIIBBHHH", source_port, destination_port, 1, 1, 5 << 4, tcp_flags, 1000, 0, 0), 16
    else:
        kind = (128 if echo_request else 129) if six else (8 if echo_request else 0)
        number, head, at = 58 if six else 1, struct.pack("!BBHHH", kind, 0, 0, destination_port, 1), 2
    if not six:
        pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!HH", number, len(head + payload))
        total = checksum((b"" if protocol == "echo" else pseudo) + head + payload)
        return raw_ip4(source, destination, number, head[:at] + struct.pack("!H", total) + head[at + 2:] + payload)
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    total = checksum(ends + struct.pack("!II", len(head + payload), number) + head + payload)
    return struct.pack("!IHBB", 6 << 28, len(head + payload), number, 64) + ends + head[:at] + struct.pack(
        "!H", total) + head[at + 2:] + payload


def fragmented(packet, at=32):
    """A whole packet of whole_packet() in two parts, the first with `at` bytes behind the IP header."""
    if packet[0] >> 4 == 4:
        def part(payload, flags):
            head = struct.pack("!BBHHH", 0x45, 0, 20 + len(payload), 7, flags) + packet[8:10] + bytes(2) + packet[12:20]
            return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload
        return [part(packet[20:20 + at], 0x2000), part(packet[20 + at:], at // 8)]

    def part6(payload, offset):
        extension = struct.pack("!BBHI", packet[6], 0, offset, 7)
        return struct.pack("!IHBB", 6 << 28, 8 + len(payload), 44, 64) + packet[8:40] + extension + payload
    return [part6(packet[40:40 + at], 1), part6(packet[40 + at:], at)]


def forged(protocol, source, destination, source_port, destination_port):
    """What would open a flow from outside."""
    return whole_packet(protocol, source, destination, source_port, destination_port, b"" if protocol == "tcp" else b"forged")


class PacketSocket:
    """Sends whole frames by AF_PACKET from one device; behind vnet_header() if told so."""

    def __init__(self, namespace, device, vnet_header=False):
        self.socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.bind((device, 0))
        if vnet_header:
            self.socket.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE is 33, SO_SNDBUFFORCE 32
        self.socket.setsockopt(socket.SOL_SOCKET, 32, 1 << 24)

    def send(self, frame):
        while True:
            try:
                self.socket.send(frame)
                return True
            except BlockingIOError:
                time.sleep(0.001)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    time.sleep(0.001)
                    continue
                raise

    def close(self):
        self.socket.close()


class PacketRing:
    """Sends by PACKET_TX_RING: the kernel builds skbs whose data beyond the Ethernet header is in pages (non-linear)."""

    _BLOCK, _FRAME, _COUNT = 1 << 16, 2048, 32
    _HEADER = 32  # sizeof(struct tpacket2_hdr), aligned; the frame begins here when PACKET_TX_HAS_OFF is off

    def __init__(self, namespace, device):
        self.socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        SOL_PACKET = 263
        self.socket.setsockopt(SOL_PACKET, 10, 1)  # PACKET_VERSION: TPACKET_V2
        self.socket.setsockopt(SOL_PACKET, 14, 1)  # PACKET_LOSS: a malformed frame is skipped, not fatal
        self.socket.setsockopt(SOL_PACKET, 13, struct.pack("IIII", self._BLOCK, 1, self._FRAME, self._COUNT))  # PACKET_TX_RING
        self.socket.bind((device, 0))
        self.ring = mmap.mmap(self.socket.fileno(), self._BLOCK)
        self.next = 0

    def send(self, frame):
        at = self.next * self._FRAME
        eventually(lambda: struct.unpack_from("I", self.ring, at)[0] == 0, "a free frame in the transmit ring", pause=0.001)
        self.ring[at + self._HEADER:at + self._HEADER + len(frame)] = frame
        struct.pack_into("II", self.ring, at + 4, len(frame), len(frame))
        struct.pack_into("I", self.ring, at, 1)  # TP_STATUS_SEND_REQUEST
        self.next = (self.next + 1) % self._COUNT
        try:
            self.socket.send(b"")
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.EINVAL):
                raise
            struct.pack_into("I", self.ring, at, 0)

    def close(self):
        self.ring.close()
        self.socket.close()


class TunDevice:
    """/dev/net/tun held open: what is written here is what a virtual machine sends. `kind` is "tun" or "tap"."""

    def __init__(self, namespace, name, kind="tun", packet_information=False, vnet_header=False):
        self.name = name
        self.packet_information, self.vnet_header = packet_information, vnet_header
        flags = {"tun": 0x0001, "tap": 0x0002}[kind]
        if not packet_information:
            flags |= 0x1000  # IFF_NO_PI
        if vnet_header:
            flags |= 0x4000  # IFF_VNET_HDR
        with namespace.inside():  # the device lands in the namespace of whoever opens
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.ioctl(self.fd, 0x400454CA, struct.pack("16sH", name.encode(), flags))  # TUNSETIFF

    def send(self, packet, protocol=None, linear=0):
        """`protocol`: the EtherType in the packet information; `linear`: hdr_len of the vnet header."""
        head = b""
        if self.packet_information:
            if protocol is None:
                protocol = 0x86DD if packet and packet[0] >> 4 == 6 else 0x0800
            head += struct.pack("!HH", 0, protocol)
        if self.vnet_header:
            head += vnet_header(linear=linear)
        try:
            self.write(head + packet)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EIO):  # the driver itself refuses the shape
                raise

    def write(self, content):
        """`content` with all headers that the device wants."""
        os.write(self.fd, content)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Sniffer(threading.Thread):
    """Records every frame that arrives at a device (not what is sent there)."""

    def __init__(self, namespace, device):
        super().__init__(daemon=True)
        self.frames = []
        self.times = []  # time.monotonic() of each
        self.socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))  # ETH_P_ALL
        self.socket.bind((device, 3))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)
        with contextlib.suppress(OSError):
            self.socket.setsockopt(263, 1, struct.pack("iHH8s", namespace.ifindex(device), 1, 0, b""))  # promiscuous
        self.socket.settimeout(0.2)
        self.stopping = False
        self.start()

    def run(self):
        while not self.stopping:
            try:
                frame, address = self.socket.recvfrom(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if address[2] != 4:  # PACKET_OUTGOING
                self.times.append(time.monotonic())
                self.frames.append(frame)

    def lost(self):
        """Frames the kernel could not record since the last call: a test that asserts absence must see 0."""
        return struct.unpack("II", self.socket.getsockopt(263, 6, 8))[1]  # PACKET_STATISTICS

    def stop(self):
        self.stopping = True
        self.join()
        self.socket.close()
