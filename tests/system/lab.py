"""The test lab: guests, a host and an "internet", each in a network namespace that the test made.

    with Lab("routed") as lab:              # or "bridged", "tun"
        daemon = lab.daemon(policy=ALLOWLIST)
        arrived = lab.send_and_watch([frame, ...])

Nothing of the machine's own network is touched. Beside it:

    machine.py       commands, waiting, sweeping away what a killed run left
    namespaces.py    entering them and running things inside
    packets.py       whole packets: built, sent, recorded
    traffic.py       ordinary servers and clients
    workloads.py     cgroups and processes in them
    daemon.py        sluiced: its configuration, its life, what the kernel holds of it
    name_servers.py  nsd, dnsmasq and their like; scripted_upstream.py: one that lies
    shapes.py        every way to send a packet
"""

import contextlib
import os
import re
import shutil
import socket
import struct
import tempfile
import time

from daemon import INTERFACES_CONFIG, Daemon
from machine import FAMILY, LabError, bpffs_root, cgroup_root, eventually
from namespaces import Namespace
from packets import PacketSocket, Sniffer, TunDevice, checksum, raw_udp4
from traffic import EchoServers
from workloads import Cgroup

# Addresses are of the documentation and benchmarking ranges (RFC 2544, 3849, 5737).
ALLOWED4, ALLOWED6 = "198.51.100.10", "2001:db8:a::10"  # every protocol and port
HOLE4, HOLE6 = "198.51.100.99", "2001:db8:a::99"  # denied inside the allowed prefix
PORTED4, PORTED6 = "192.0.2.20", "2001:db8:c::20"  # tcp/443 and udp/8000-8100 only
DENIED4, DENIED6 = "203.0.113.66", "2001:db8:bad::66"  # nothing says anything of it
GUEST4, GUEST6 = "198.18.1.2", "2001:db8:0:1::2"
GATEWAY4, GATEWAY6 = "198.18.1.1", "2001:db8:0:1::1"
METADATA4, METADATA6 = "169.254.169.254", "fd00:ec2::254"  # the floor
INTERNET_PREFIXES4 = ["198.51.100.0/24", "192.0.2.0/24", "203.0.113.0/24", "169.254.169.254/32"]
INTERNET_PREFIXES6 = ["2001:db8:a::/48", "2001:db8:c::/48", "2001:db8:bad::/48", "64:ff9b::/96", "64:ff9b:1::/48",
                      "2002::/16", "2001:0:1::/48", "fd00:ec2::254/128"]

ALLOWLIST = """
[[policy]]
name  = "lab"
match = { class = "vm" }
mode  = "allowlist"
[[policy.allow]]
cidrs = ["198.51.100.0/24", "2001:db8:a::/48", "198.18.1.1/32", "2001:db8:0:1::1/128", "64:ff9b::/96", "64:ff9b:1::/48",
         "2002::/16"]
[[policy.allow]]
cidrs = ["192.0.2.0/24", "2001:db8:c::/48"]
ports = ["tcp/443", "udp/8000-8100"]
[[policy.deny]]
cidrs = ["198.51.100.99/32", "2001:db8:a::99/128"]
"""


class Lab:
    """A guest behind the host, the internet beyond it.

    host:     no guest: processes of the host itself, in cgroups
    routed:   guest g1 -- h1 host uplink -- i0 internet         the host forwards between h1 and its uplink
    bridged:  guest g1 -- h1 host uplink -- i0 internet         h1 and uplink are ports of bridge br0
    tun:      this process holds htun, a device without an Ethernet header; the host forwards

    The guest's gateway has the same addresses in each, so one policy fits all.
    """

    _count = 0

    def __init__(self, variant="routed"):
        Lab._count += 1
        self.variant = variant
        self.prefix = f"{FAMILY}{os.getpid()}x{Lab._count}"
        self.folder = tempfile.mkdtemp(prefix=self.prefix + "-")
        os.chmod(self.folder, 0o755)
        self.cleanups = contextlib.ExitStack()
        # First byte 11: also a usable unicast address (11.x.y.z) for shapes too short for a payload.
        self.nonce = bytes([11, os.urandom(1)[0]])
        self.daemons = []
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        reports = []
        for daemon in self.daemons:
            with contextlib.suppress(Exception):
                daemon.forget()
            # A build with sanitizers: what they found, at the end of the process too, is a failure of the test.
            report = re.search(r"Sanitizer:|runtime error:", daemon.log(whole=True))
            if report:
                reports.append(daemon.log(whole=True)[max(0, report.start() - 200):][:8000])
        self.cleanups.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if reports:
            raise AssertionError("a sanitizer reports:\n" + "\n".join(reports))

    def namespace(self, role):
        namespace = Namespace(self.prefix + role)
        self.cleanups.callback(namespace.delete)
        namespace.sysctl(ipv6__conf__all__accept_dad=0, ipv6__conf__default__accept_dad=0, ipv6__conf__default__accept_ra=0,
                         ipv4__conf__all__rp_filter=0, ipv4__conf__default__rp_filter=0)
        return namespace

    def _build(self):
        bpffs_root()
        self.host = self.namespace("host")
        self.internet = self.namespace("net")
        # The host is as careless as a host can be: what arrives in the control run must not depend on its good manners.
        self.host.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv6__conf__default__forwarding=1,
                         ipv4__conf__all__accept_source_route=1, ipv4__conf__default__accept_source_route=1,
                         ipv6__conf__all__accept_source_route=1, ipv6__conf__default__accept_source_route=1,
                         ipv4__conf__all__route_localnet=1, ipv4__conf__default__route_localnet=1,
                         ipv4__conf__all__send_redirects=0, ipv4__conf__default__send_redirects=0,
                         ipv4__conf__all__bc_forwarding=1, ipv4__conf__default__bc_forwarding=1,
                         ipv4__icmp_ratelimit=0, ipv4__conf__all__accept_local=1, ipv4__conf__default__accept_local=1)
        for name, value in (("seg6_enabled", 1), ("rpl_seg_enabled", 1)):
            with contextlib.suppress(OSError):
                self.host.sysctl(**{f"ipv6__conf__all__{name}": value, f"ipv6__conf__default__{name}": value})
        self.internet.sysctl(ipv4__icmp_ratelimit=0, ipv4__icmp_echo_ignore_broadcasts=1, ipv6__ip_nonlocal_bind=1,
                             ipv4__ip_nonlocal_bind=1)
        self.host.batch(f"link add uplink type veth peer name i0 netns {self.internet.name}")
        for prefix in INTERNET_PREFIXES4:
            self.internet.ip("route", "add", "local", prefix, "dev", "lo")
        for prefix in INTERNET_PREFIXES6:
            self.internet.ip("-6", "route", "add", "local", prefix, "dev", "lo")
        getattr(self, "_build_" + self.variant)()
        self.sniffer = Sniffer(self.internet, "i0")
        self.cleanups.callback(self.sniffer.stop)

    def _uplink(self):
        """The host's own way out, where it forwards."""
        self.host.batch("""
            link set uplink up
            addr add 198.19.0.1/24 dev uplink
            addr add 2001:db8:ffff::1/64 dev uplink nodad
            route add default via 198.19.0.2
            route add default via 2001:db8:ffff::2
            """)
        self.internet.batch("""
            link set i0 up
            addr add 198.19.0.2/24 dev i0
            addr add 2001:db8:ffff::2/64 dev i0 nodad
            route add default via 198.19.0.1
            route add default via 2001:db8:ffff::1
            """)
        self._neighbours(self.host, "uplink", self.internet, "i0", "198.19.0.1", "198.19.0.2", "2001:db8:ffff::1", "2001:db8:ffff::2")

    @staticmethod
    def _neighbours(left, left_device, right, right_device, left4, right4, left6, right6):
        """Fixed neighbours: a control run must not depend on resolution."""
        left_mac, right_mac = (":".join(f"{b:02x}" for b in n.mac(d)) for n, d in ((left, left_device), (right, right_device)))
        left.batch(f"neigh replace {right4} lladdr {right_mac} dev {left_device}\n"
                   f"neigh replace {right6} lladdr {right_mac} dev {left_device}")
        right.batch(f"neigh replace {left4} lladdr {left_mac} dev {right_device}\n"
                    f"neigh replace {left6} lladdr {left_mac} dev {right_device}")

    def add_guest(self, number, device=None, fixed_neighbours=True):
        """A namespace with g<n>, its host side h<n> (or `device`) and addresses of 198.18.<n>.0/24; the host routes."""
        guest = self.namespace(f"guest{number}")
        device = device or f"h{number}"
        self.host.batch(f"""
            link add {device} type veth peer name g{number} netns {guest.name}
            addr add 198.18.{number}.1/24 dev {device}
            addr add 2001:db8:0:{number}::1/64 dev {device} nodad
            link set {device} up
            """)
        self.configure_guest(guest, number)
        if fixed_neighbours:
            self._neighbours(guest, f"g{number}", self.host, device, f"198.18.{number}.2", f"198.18.{number}.1",
                             f"2001:db8:0:{number}::2", f"2001:db8:0:{number}::1")
        return guest

    @staticmethod
    def configure_guest(guest, number=1):
        guest.batch(f"""
            link set g{number} up
            addr add 198.18.{number}.2/24 dev g{number}
            addr add 2001:db8:0:{number}::2/64 dev g{number} nodad
            route add default via 198.18.{number}.1
            route add default via 2001:db8:0:{number}::1
            """)

    def _build_routed(self):
        self._uplink()
        self.guest = self.add_guest(1)
        self.sender = PacketSocket(self.guest, "g1")
        self.cleanups.callback(self.sender.close)
        self.gateway_mac, self.guest_mac = self.host.mac("h1"), self.guest.mac("g1")

    def _build_host(self):
        self._uplink()
        self.host.sysctl(ipv4__ping_group_range="0 2147483647", ipv4__tcp_fastopen=3, ipv4__tcp_syn_retries=1)
        with contextlib.suppress(OSError):
            self.host.sysctl(mptcp__enabled=1)
        self.internet.sysctl(ipv4__tcp_fastopen=3)
        self.guest = self.host
        self.gateway_mac, self.guest_mac = self.internet.mac("i0"), self.host.mac("uplink")

    def _build_bridged(self):
        self.guest = self.namespace("guest1")
        for family in ("ip", "ip6", "arp"):  # a bridge that looks into packets would drop the malformed ones itself
            with contextlib.suppress(FileNotFoundError):
                self.host.sysctl(**{f"bridge__bridge-nf-call-{family}tables": 0})
        self.host.batch(f"""
            link add br0 type bridge mcast_snooping 0 group_fwd_mask 65528
            link add h1 type veth peer name g1 netns {self.guest.name}
            link set h1 master br0
            link set uplink master br0
            addr add 198.18.1.3/24 dev br0
            addr add 2001:db8:0:1::3/64 dev br0 nodad
            link set br0 up
            link set h1 up
            link set uplink up
            """)
        self.configure_guest(self.guest)
        self.internet.batch(f"""
            link set i0 up
            addr add {GATEWAY4}/24 dev i0
            addr add {GATEWAY6}/64 dev i0 nodad
            """)
        self._neighbours(self.guest, "g1", self.internet, "i0", GUEST4, GATEWAY4, GUEST6, GATEWAY6)
        self.sender = PacketSocket(self.guest, "g1")
        self.cleanups.callback(self.sender.close)
        self.gateway_mac, self.guest_mac = self.internet.mac("i0"), self.guest.mac("g1")

    def _build_tun(self):
        self._uplink()
        self.guest = None
        self.sender = TunDevice(self.host, "htun", packet_information=True)
        self.cleanups.callback(self.sender.close)
        self.host.batch(f"""
            addr add {GATEWAY4} peer {GUEST4} dev htun
            addr add {GATEWAY6}/64 dev htun nodad
            link set htun up
            """)
        self.gateway_mac = self.guest_mac = bytes(6)

    # -- traffic

    def marker(self, number):
        """Four bytes that no other traffic carries."""
        return self.nonce + struct.pack("!H", number)

    def serve(self, **ports):
        servers = EchoServers(self.internet, **ports)
        self.cleanups.callback(servers.stop)
        return servers

    def arrived(self, since=0):
        """Numbers of the markers seen beyond the uplink."""
        numbers = set()
        pattern = re.compile(re.escape(self.nonce) + b"(..)", re.DOTALL)
        for frame in self.sniffer.frames[since:]:
            for match in pattern.finditer(frame):
                numbers.add(struct.unpack("!H", match.group(1))[0])
        return numbers

    SENTINEL = 0xFFFF

    def flush(self, send_sentinel):
        """Returns when a packet sent after all the others has arrived: nothing is still under way."""
        start = len(self.sniffer.frames)

        def seen():
            send_sentinel()
            return self.SENTINEL in self.arrived(start)

        eventually(seen, "an allowed packet beyond the uplink", pause=0.02)
        # Frames that another CPU still had queued; not a promise, the sentinel is.
        time.sleep(0.05)
        lost = self.sniffer.lost()
        if lost:
            raise LabError(f"the sniffer lost {lost} frames; absence cannot be claimed")

    def send_and_watch(self, frames, sender=None, sentinel=None):
        """Sends (number, frame) pairs, waits until all that can arrive has, returns the markers that arrived."""
        sender = sender or self.sender
        sentinel = sentinel or self.sentinel_frame()
        start = len(self.sniffer.frames)
        for _, frame in frames:
            sender.send(frame)
        self.flush(lambda: sender.send(sentinel))
        return self.arrived(start) - {self.SENTINEL}

    def sentinel_frame(self):
        """UDP to an allowed address."""
        payload = self.marker(self.SENTINEL)
        packet = raw_udp4(GUEST4, ALLOWED4, 40000, 40001, payload)
        return packet if self.variant == "tun" else self.gateway_mac + self.guest_mac + b"\x08\x00" + packet

    # -- the daemon

    def daemon(self, policy=ALLOWLIST, config=INTERFACES_CONFIG, namespace=None, start=True, **options):
        daemon = Daemon(self, namespace or self.host, config, {"lab.toml": policy} if isinstance(policy, str) else policy,
                        name=f"d{len(self.daemons)}", **options)
        self.daemons.append(daemon)
        return daemon.start() if start else daemon

    def cgroup(self, name):
        """A directory of our own directly below the cgroup2 root."""
        cgroup = Cgroup(f"{cgroup_root()}/{self.prefix}{name}")
        self.cleanups.callback(cgroup.remove)
        return cgroup

    def udp_frame(self, number, destination, tail=8, source=GUEST4, destination_mac=None, port=9):
        """A whole frame of marked UDP; `tail` bytes at the end are room for a sequence number."""
        payload = self.marker(number) + bytes(tail)
        if ":" in destination:
            udp = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
            source6 = socket.inet_pton(socket.AF_INET6, GUEST6 if "." in source else source)
            target6 = socket.inet_pton(socket.AF_INET6, destination)
            total = checksum(source6 + target6 + struct.pack("!II", len(udp), 17) + udp) or 0xFFFF
            packet = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + source6 + target6 + udp[:6] + struct.pack("!H", total) + udp[8:]
            kind = b"\x86\xdd"
        else:
            packet, kind = raw_udp4(source, destination, 40000, port, payload), b"\x08\x00"
        return packet if self.variant == "tun" else (destination_mac or self.gateway_mac) + self.guest_mac + kind + packet

    def wait_filtered(self, daemon, device=None, namespace=None, mode=1):
        """Until the kernel holds an attachment of the device in `mode` (1: allowlist)."""
        device = device or ("htun" if self.variant == "tun" else "h1")
        ifindex = (namespace or self.host).ifindex(device)

        def stands():
            slot = daemon.slot_of(ifindex=ifindex)
            return slot is not None and slot["mode"] == mode

        try:
            eventually(stands, f"{device} under its policy")
        except AssertionError as error:
            raise AssertionError(f"{error}; the log is:\n{daemon.log()}") from None
