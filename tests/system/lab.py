"""The test lab: guests, a host and an "internet", each in a network namespace that the test made.

    with Lab("routed") as lab:              # or "bridged", "tun"
        daemon = lab.daemon(policy=ALLOWLIST)
        arrived = lab.send_and_watch([frame, ...])

Nothing of the machine's own network is touched. Every name carries a prefix with the test's process id, so that a run that
was killed is swept away by the next one (sweep()). `nsenter` semantics throughout: a thread enters a network namespace and
keeps its mounts, so cgroupfs and bpffs stay visible.
"""

import atexit
import contextlib
import ctypes
import errno
import fcntl
import glob
import ipaddress
import json
import mmap
import os
import re
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("SLUICE_BUILD_DIR", os.path.join(REPOSITORY, "build", "dev"))
FAMILY = "slt"  # every name of ours: slt<pid>...
PATIENCE = 120.0  # seconds until something that must happen is taken for lost; not a promise about speed

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
TCP_PORTS = [80, 443, 5432]
UDP_PORTS = [53, 443, 8050, 9999]

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

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


class LabError(Exception):
    """The lab itself, not the thing under test, is at fault."""


def _checked(result, what):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def rounds(full, brief):
    """How often a test repeats: the full number with SLUICE_FULL=1 (tests/run.sh --full), else fewer."""
    return full if os.environ.get("SLUICE_FULL") == "1" else brief


def run(*words, check=True, **options):
    """Runs a command; its output is in the error when it fails."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(map(str, words))}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def eventually(question, what, patience=PATIENCE, pause=0.02):
    """Waits until `question()` is true and returns its answer; names `what` when it never is."""
    deadline = time.monotonic() + patience
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {patience:.0f} s")
        time.sleep(pause)


# ---- cleaning up ------------------------------------------------------------------------------------------------------

_RECORDS = "/run/sluice-tests"  # one file per run: the processes it started, for a sweep after a kill


def _start_time(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def _remember(pid):
    os.makedirs(_RECORDS, exist_ok=True)
    with open(f"{_RECORDS}/{FAMILY}{os.getpid()}", "a") as record:
        record.write(f"{pid} {_start_time(pid)}\n")


def cgroup_root():
    """Where the cgroup2 hierarchy is mounted."""
    with open("/proc/mounts") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == "cgroup2":
                return fields[1]
    raise LabError("no cgroup2 file system is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")


def bpffs_root():
    """/sys/fs/bpf, mounted when it is not."""
    with open("/proc/mounts") as mounts:
        if not any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in mounts):
            run("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")
    return "/sys/fs/bpf"


def _remove_cgroup(path):
    for folder, _, _ in list(os.walk(path, topdown=False)):
        with contextlib.suppress(OSError):
            with open(f"{folder}/cgroup.kill", "w") as kill:
                kill.write("1")
        for _ in range(200):
            try:
                os.rmdir(folder)
                break
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.01)


def sweep(owner=None):
    """Removes what runs of dead processes (or of process `owner`) left: processes, namespaces, cgroups, pins, mounts, files."""

    def is_ours(name):
        match = re.match(rf"(?:sluice-test-)?{FAMILY}(\d+)x?", name)
        if not match:
            return False
        pid = int(match.group(1))
        return pid == owner if owner else not os.path.exists(f"/proc/{pid}")

    for record in glob.glob(f"{_RECORDS}/{FAMILY}*"):
        if is_ours(os.path.basename(record)):
            for line in open(record):
                pid, started = line.split()
                if _start_time(pid) == started:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            os.unlink(record)
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        if is_ours(name):
            run("ip", "netns", "delete", name, check=False)
    with contextlib.suppress(LabError):
        for name in os.listdir(cgroup_root()):
            if is_ours(name):
                _remove_cgroup(f"{cgroup_root()}/{name}")
    for name in os.listdir("/sys/fs/bpf"):
        if is_ours(name):
            shutil.rmtree(f"/sys/fs/bpf/{name}", ignore_errors=True)
    for path in glob.glob(f"{tempfile.gettempdir()}/{FAMILY}*"):
        if is_ours(os.path.basename(path)):
            for line in open("/proc/mounts").read().splitlines():
                if line.split()[1].startswith(path + "/"):
                    run("umount", "-l", line.split()[1], check=False)
            shutil.rmtree(path, ignore_errors=True)


_owner = os.getpid()


def _sweep_own():
    if os.getpid() == _owner:
        sweep(_owner)


atexit.register(_sweep_own)
sweep()
# A polite kill is an exit, so that finalizers run.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))


def _die_with_parent():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


# ---- namespaces ---------------------------------------------------------------------------------------------------------

class Namespace:
    """A network namespace. Sockets opened within `inside()` stay in it."""

    def __init__(self, name):
        self.name = name
        run("ip", "netns", "add", name)
        self.path = f"/run/netns/{name}"
        self.ip("link", "set", "lo", "up")

    @contextlib.contextmanager
    def inside(self):
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(_libc.setns(there, _CLONE_NEWNET), f"setns {self.name}")
            try:
                yield self
            finally:
                _checked(_libc.setns(home, _CLONE_NEWNET), "setns home")
        finally:
            os.close(there)
            os.close(home)

    def ip(self, *words, check=True):
        return run("ip", "-n", self.name, *words, check=check)

    def batch(self, text, force=False):
        """Lines of ip(8), one process."""
        lines = "\n".join(line.strip() for line in text.strip().splitlines())
        done = subprocess.run(["ip", "-n", self.name] + (["-force"] if force else []) + ["-batch", "-"], input=lines, text=True,
                              capture_output=True)
        if done.returncode != 0 and not force:
            raise LabError(f"{self.name}: ip -batch: {done.stderr.strip()}\n{lines}")

    def sysctl(self, **values):
        """`net.` is implied and `__` is a dot: ipv4__ip_forward=1."""
        with self.inside():
            for name, value in values.items():
                with open("/proc/sys/net/" + name.replace("__", "/"), "w") as file:
                    file.write(str(value))

    def socket(self, *arguments):
        with self.inside():
            return socket.socket(*arguments)

    def run(self, *words, **options):
        with self.inside():
            return run(*words, **options)

    def popen(self, words, **options):
        """A process inside; it dies with the test."""
        with self.inside():
            process = subprocess.Popen(words, preexec_fn=_die_with_parent, **options)
        _remember(process.pid)
        return process

    def mac(self, device):
        with self.inside():
            probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with probe:
                answer = fcntl.ioctl(probe, 0x8927, struct.pack("256s", device.encode()))  # SIOCGIFHWADDR
        return answer[18:24]

    def ifindex(self, device):
        with self.inside():
            return socket.if_nametoindex(device)

    def delete(self):
        run("ip", "netns", "delete", self.name, check=False)


class PacketSocket:
    """Sends whole frames by AF_PACKET from one device."""

    def __init__(self, namespace, device):
        self.socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.bind((device, 0))
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
            head += struct.pack("<BBHHHH", 0, 0, linear, 0, 0, 0)
        try:
            os.write(self.fd, head + packet)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EIO):  # the driver itself refuses the shape
                raise

    def receive(self):
        try:
            return os.read(self.fd, 65536)
        except BlockingIOError:
            return b""

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


class EchoServers(threading.Thread):
    """Answers on every address of a namespace, by the address that was asked: TCP and UDP, IPv4 and IPv6."""

    def __init__(self, namespace, tcp=TCP_PORTS, udp=UDP_PORTS):
        super().__init__(daemon=True)
        self.selector = selectors.DefaultSelector()
        self.connections = 0
        for port in tcp:
            listener = namespace.socket(socket.AF_INET6, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, 23, 64)  # TCP_FASTOPEN
            listener.bind(("::", port))
            listener.listen(512)
            listener.setblocking(False)
            self.selector.register(listener, selectors.EVENT_READ, self._accept)
        for port in udp:
            for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                server = namespace.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                else:
                    server.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
                server.bind((any_address, port))
                server.setblocking(False)
                self.selector.register(server, selectors.EVENT_READ, self._answer)
        self.wake_read, self.wake_write = os.pipe()
        self.selector.register(self.wake_read, selectors.EVENT_READ, None)
        self.start()

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            self.connections += 1
            self.selector.register(connection, selectors.EVENT_READ, self._echo)

    def _echo(self, connection):
        try:
            data = connection.recv(65536)
            if data:
                connection.sendall(data)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.selector.unregister(connection)
        connection.close()

    def _answer(self, server):
        with contextlib.suppress(OSError):
            data, ancillary, _, asker = server.recvmsg(65536, 256)
            reply = []
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_IP:  # in_pktinfo {ifindex, spec_dst, addr}: answer from addr
                    reply = [(level, kind, struct.pack("I", 0) + value[8:12] + bytes(4))]
                elif level == socket.IPPROTO_IPV6:
                    reply = [(level, kind, value[:16] + struct.pack("I", 0))]
            server.sendmsg([data], reply, 0, asker)

    def run(self):
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)

    def stop(self):
        os.write(self.wake_write, b"x")
        self.join()
        for key in list(self.selector.get_map().values()):
            if key.data is not None:
                key.fileobj.close()
        os.close(self.wake_read)
        os.close(self.wake_write)
        self.selector.close()


# ---- the daemon -----------------------------------------------------------------------------------------------------------

def find_program(name):
    """A program of the build folder, by its name."""
    for folder, folders, files in os.walk(BUILD):
        folders[:] = [f for f in folders if f != "CMakeFiles"]
        if name in files and os.access(os.path.join(folder, name), os.X_OK):
            return os.path.join(folder, name)
    raise LabError(f"{name}: not in {BUILD}; build it first: cmake --build {BUILD}")


def plugin_folders():
    """The folders of the build that hold plugins as shipped."""
    folders = sorted({os.path.dirname(path) for path in glob.glob(f"{BUILD}/plugins/**/*.so", recursive=True)})
    if not folders:
        raise LabError(f"no plugin in {BUILD}/plugins; build them first: cmake --build {BUILD}")
    return folders


def make_trustworthy():
    """Plugins must be root's and not writable by others; a build under a loose umask is not."""
    for folder in plugin_folders():
        for path in glob.glob(f"{folder}/*.so"):
            os.chown(path, 0, 0)
            os.chmod(path, os.stat(path).st_mode & ~0o022)


def to_toml(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {to_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value)


class LiveSlot:
    """One element of the map `slots`, read through a mapping: no system call, so a test may spin on it."""

    def __init__(self, path, index, shown):
        attributes = struct.pack("QII112x", ctypes.addressof(name := ctypes.create_string_buffer(path.encode())), 0, 0)
        fd = _checked(_libc.syscall(321, 7, attributes, len(attributes)), f"BPF_OBJ_GET {path}")  # x86-64; bpf(2)
        stride = (shown["bytes_value"] + 7) & ~7
        size = (stride * shown["max_entries"] + mmap.PAGESIZE - 1) & ~(mmap.PAGESIZE - 1)
        self.map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fd)
        self.offset = stride * index

    @property
    def word(self):
        return struct.unpack_from("Q", self.map, self.offset)[0]

    @property
    def generation(self):
        """Low 24 bits, as the packet sees it: read from the word that is published."""
        return self.word >> 40

    def close(self):
        self.map.close()


# Starts a program with descriptors from 3 on, as a service manager does that kept them.
HAND_OVER = """
import os, sys
count = int(sys.argv[1])
for number, fd in enumerate(map(int, sys.argv[2:2 + count])):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


class Daemon:
    """sluiced on a configuration of its own. `config` is TOML text; {folder}, {plugins}, {state}, {bpffs} are filled in."""

    HOST = """
[host]
plugin_path = {plugins}
state_dir   = {state}
bpffs       = {bpffs}
log_level   = "debug"
max_attachments = {max_attachments}
"""

    def __init__(self, lab, namespace, config, policies, name="d", max_attachments=256, extra_host="", environment=None,
                 wrapper=()):
        self.lab, self.namespace, self.name, self.wrapper = lab, namespace, name, list(wrapper)
        self.folder = os.path.join(lab.folder, name)
        self.policy_folder = os.path.join(self.folder, "policies.d")
        os.makedirs(self.policy_folder)
        self.state = os.path.join(self.folder, "state")
        self.pins = f"{bpffs_root()}/sluice-test-{lab.prefix}{name}"
        self.config_file = os.path.join(self.folder, "sluice.toml")
        self.log_file = os.path.join(self.folder, "log")
        self.environment = dict(os.environ, **(environment or {}))
        self.max_attachments, self.extra_host = max_attachments, extra_host
        self.process = None
        self.notify = None
        self.keeps_descriptors = False  # set before start(): the service manager has a store for them
        self.kept = []  # (name, descriptor)
        self.program = "sluiced"
        make_trustworthy()
        for file, text in policies.items():
            self.write_policy(file, text)
        self.write_config(config)

    def write_config(self, config):
        head = self.HOST.format(plugins=to_toml(plugin_folders()), state=to_toml(self.state), bpffs=to_toml(self.pins),
                                max_attachments=self.max_attachments) + self.extra_host
        config = config.replace("{folder}", self.folder).replace("{policies}", f"{self.policy_folder}/*.toml")
        self._replace(self.config_file, head + config)

    def write_policy(self, file, text):
        self._replace(os.path.join(self.policy_folder, file), text)

    @staticmethod
    def _replace(path, text):
        with open(path + ".new", "w") as file:
            file.write(text)
        os.rename(path + ".new", path)

    def start(self, wait=True):
        if self.notify:
            self.notify.close()
        notify_path = os.path.join(self.folder, "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(notify_path)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.notify.bind(notify_path)
        os.chmod(notify_path, 0o666)
        self.notify.settimeout(0.05)
        self.is_ready = threading.Event()
        threading.Thread(target=self._listen, args=(self.notify,), daemon=True).start()
        self.log_start = os.path.getsize(self.log_file) if os.path.exists(self.log_file) else 0
        log = open(self.log_file, "ab")
        words = self.wrapper + [find_program(self.program), "--config", self.config_file]
        environment = dict(self.environment, NOTIFY_SOCKET=notify_path)
        handed = [fd for _, fd in self.kept]
        if handed:
            words = [sys.executable, "-c", HAND_OVER, str(len(handed)), *map(str, handed), *words]
            environment.update(LISTEN_FDS=str(len(handed)), LISTEN_FDNAMES=":".join(name for name, _ in self.kept))
        self.process = self.namespace.popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                                            pass_fds=handed)
        log.close()
        if wait:
            self.wait_ready()
        return self

    def _listen(self, notify):
        """A service manager reads what it is told, and keeps what it is given."""
        with contextlib.suppress(OSError, ValueError):
            while True:
                with contextlib.suppress(TimeoutError):
                    text, fds, _, _ = socket.recv_fds(notify, 4096, 4)
                    self._keep(dict(line.partition("=")[::2] for line in text.decode().splitlines()), fds)
                    if b"READY=1" in text:
                        self.is_ready.set()

    def _keep(self, said, fds):
        name = said.get("FDNAME")
        if "FDSTOREREMOVE" in said:
            for entry in [entry for entry in self.kept if entry[0] == name]:
                self.kept.remove(entry)
                os.close(entry[1])
        for fd in fds:
            if "FDSTORE" in said and self.keeps_descriptors:
                self.kept.append((name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 500)))  # beyond where they are handed over
            os.close(fd)

    def forget_descriptors(self):
        while self.kept:
            os.close(self.kept.pop()[1])

    def wait_ready(self, patience=PATIENCE):
        deadline = time.monotonic() + patience
        while True:
            if self.is_ready.wait(0.05):
                return
            if self.process.poll() is not None:
                raise AssertionError(f"sluiced ended with {self.process.returncode} before it was ready:\n{self.log()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"sluiced did not say that it is ready within {patience:.0f} s:\n{self.log()}")

    def log(self, whole=False):
        """What the daemon has said since it was last started (or ever)."""
        if not os.path.exists(self.log_file):
            return ""
        with open(self.log_file, "rb") as file:
            file.seek(0 if whole else self.log_start)
            return file.read().decode(errors="replace")

    def expect_log(self, pattern, patience=PATIENCE):
        try:
            return eventually(lambda: re.search(pattern, self.log()), f"a log line like /{pattern}/", patience)
        except AssertionError as error:
            raise AssertionError(f"{error}; the log is:\n{self.log()}") from None

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def reload(self):
        self.signal(signal.SIGHUP)

    def kill(self):
        """No goodbye."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self, patience=PATIENCE):
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"sluiced did not end within {patience:.0f} s of SIGTERM:\n{self.log()}") from None

    def check(self, config=None):
        """sluiced --check: (exit code, output)."""
        with self.namespace.inside():
            done = subprocess.run(self.wrapper + [find_program("sluiced"), "--check", config or self.config_file], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment, timeout=120)
        return done.returncode, done.stdout

    def slots(self):
        """The live attachments as the kernel has them: dictionaries named as in bpf/layout.h."""
        found = []
        path = next(iter(glob.glob(f"{self.pins}/**/slots", recursive=True)), None)
        if path is None:
            return found
        for entry in json.loads(run("bpftool", "-j", "map", "dump", "pinned", path)):
            value = entry["formatted"]["value"] if "formatted" in entry else entry["value"]
            value = value["value"] if "value" in value else value
            if value["state"] == 1:
                value["mode"] = (value["word"] >> 28) & 3
                found.append(value)
        return found

    def slot_of(self, ifindex=None, cgroup_id=None):
        for slot in self.slots():
            if ifindex is not None and slot["ifindex"] == ifindex or cgroup_id is not None and slot["cgroup_id"] == cgroup_id:
                return slot
        return None

    def learned(self, ifindex):
        """Addresses that names have opened for an interface, as the kernel has them: {text: value as in bpf/layout.h}."""
        scope = self.slot_of(ifindex=ifindex)["scope"]
        path = glob.glob(f"{self.pins}/**/learned", recursive=True)[0]
        found = {}
        for entry in json.loads(run("bpftool", "-j", "map", "dump", "pinned", path)):
            key, value = (entry["formatted"][part] if "formatted" in entry else entry[part] for part in ("key", "value"))
            if key["scope"] == scope:
                address = ipaddress.IPv6Address(bytes(key["address"]))
                found[str(address.ipv4_mapped or address)] = value
        return found

    def program_tags(self):
        """What runs at each pinned link, as the kernel names it by its instructions: {"1-from": tag, ...}."""
        tags = {}
        for path in glob.glob(f"{self.pins}/links/*"):
            link = json.loads(run("bpftool", "-j", "link", "show", "pinned", path))
            tags[os.path.basename(path)] = json.loads(run("bpftool", "-j", "prog", "show", "id", link["prog_id"]))["tag"]
        return tags

    def live_slot(self, **which):
        """A LiveSlot of the attachment, for a test that watches its generation."""
        path = glob.glob(f"{self.pins}/**/slots", recursive=True)[0]
        for entry in json.loads(run("bpftool", "-j", "map", "dump", "pinned", path)):
            value = entry["formatted"]["value"] if "formatted" in entry else entry["value"]
            key = entry["formatted"]["key"] if "formatted" in entry else entry["key"]
            if value["state"] == 1 and all(value[name] == wanted for name, wanted in which.items()):
                return LiveSlot(path, key, json.loads(run("bpftool", "-j", "map", "show", "pinned", path)))
        raise LabError(f"no attachment with {which}")

    def stop(self):
        if self.is_running():
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.notify:
            self.notify.close()
            self.notify = None

    def forget(self):
        """Stops and removes every pin: the filter is gone."""
        self.stop()
        shutil.rmtree(self.pins, ignore_errors=True)


# ---- topologies -----------------------------------------------------------------------------------------------------------

INTERFACES_CONFIG = """
[plugin.taps]
library = "interfaces"
match   = ["h*"]
labels  = { class = "vm" }

[plugin.static]
library  = "static"
policies = ["{policies}"]

[[wire]]
targets = { discovered_by = "taps" }
sources = ["static"]
mode    = "block-all"
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


# ---- cgroups --------------------------------------------------------------------------------------------------------------

class Cgroup:
    """A cgroup2 directory. `add_child` makes one below."""

    def __init__(self, path):
        self.path = path
        os.makedirs(path)

    @property
    def name(self):
        """As plugins and policies name it: below the mount."""
        return self.path[len(cgroup_root()):]

    @property
    def id(self):
        return os.stat(self.path).st_ino

    def add_child(self, name):
        return Cgroup(f"{self.path}/{name}")

    def move_here(self, pid):
        with open(f"{self.path}/cgroup.procs", "w") as procs:
            procs.write(str(pid))

    def remove(self):
        _remove_cgroup(self.path)


class Inhabitant:
    """tests/system/helpers/inhabitant.c: a process that opens sockets and sends as it is told; see there for the commands."""

    def __init__(self, namespace, cgroup=None):
        self.process = namespace.popen([find_program("inhabitant")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       bufsize=1)
        # Before its first socket: it waits for the first command.
        if cgroup:
            cgroup.move_here(self.process.pid)

    def do(self, *words):
        """The answer to one command: "ok ...", or the name of an errno."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise LabError(f"the inhabitant ended at: {words}")
        return answer

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Pulse:
    """tests/system/helpers/pulse.c: sends frames from the first possible moment until stop(), which tells how many of each."""

    def __init__(self, namespace, *streams, interval_us=200):
        words = [find_program("pulse"), str(interval_us)]
        for device, frame in streams:
            words += [device, frame.hex()]
        self.process = namespace.popen(words, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def stop(self):
        self.process.terminate()
        sent = [int(word) for word in self.process.stdout.read().split()]
        self.process.wait()
        self.process.stdout.close()
        return sent


# ---- small clients ----------------------------------------------------------------------------------------------------

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


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp_exchange(namespace, address, port, data=b"hello", timeout=3.0):
    """"ok", or the name of the error: what a client of the workload sees."""
    client = namespace.socket(family_of(address), socket.SOCK_STREAM)
    with client:
        client.settimeout(timeout)
        try:
            client.connect((address, port))
            client.sendall(data)
            return "ok" if client.recv(len(data)) == data else "other data"
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))


def udp_exchange(namespace, address, port, data=b"hello", timeout=1.0, tries=3):
    client = namespace.socket(family_of(address), socket.SOCK_DGRAM)
    with client:
        client.settimeout(timeout)
        result = "timeout"
        for _ in range(tries):
            try:
                client.connect((address, port))
                client.send(data)
                return "ok" if client.recv(len(data)) == data else "other data"
            except TimeoutError:
                continue
            except OSError as error:
                result = errno.errorcode.get(error.errno, str(error))
        return result


def ping(namespace, address, timeout=1, count=1):
    with namespace.inside():
        done = subprocess.run(["ping", "-n", "-q", "-c", str(count), "-W", str(timeout), address], capture_output=True)
    return done.returncode == 0
