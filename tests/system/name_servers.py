"""Name servers of the tests' own, each a child of the test in a namespace that the test made, configured from here.

    with Nsd(lab.internet, lab.folder, {"names.example": ZONE}) as upstream: ...

They serve and ask inside the lab only; nothing of the machine's resolver is touched.
"""

import contextlib
import ipaddress
import os
import shutil
import socket
import subprocess

from machine import eventually
from traffic import family_of

SOA = """$ORIGIN {zone}.
$TTL 300
@ SOA ns.{zone}. hostmaster.{zone}. 1 3600 600 86400 300
@ NS ns
ns A 198.19.0.2
"""


def answers(namespace, address, name="ns.names.example"):
    """True when a server there answers at all."""
    question = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + wire_name(name) + b"\x00\x01\x00\x01"
    with namespace.socket(family_of(address), socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        with contextlib.suppress(OSError):
            client.sendto(question, (address, 53))
            return len(client.recv(4096)) >= 12
    return False


def wire_name(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"


class Server:
    """A process that ends with the test."""

    def __init__(self, namespace, folder, name):
        self.namespace, self.folder = namespace, os.path.join(folder, name)
        os.makedirs(self.folder, exist_ok=True)
        os.chmod(self.folder, 0o755)
        self.log_file = os.path.join(self.folder, "log")
        self.process = None

    def write(self, file, text):
        path = os.path.join(self.folder, file)
        with open(path, "w") as out:
            out.write(text)
        return path

    def launch(self, words):
        with open(self.log_file, "ab") as log:
            self.process = self.namespace.popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def log(self):
        with open(self.log_file, errors="replace") as file:
            return file.read()

    def wait(self, ready, what):
        def up():
            if self.process.poll() is not None:
                raise AssertionError(f"{what} ended with {self.process.returncode}:\n{self.log()}")
            return ready()

        eventually(up, what)

    def close(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Nsd(Server):
    """An authoritative server: `zones` maps a zone's name to its records (without SOA)."""

    def __init__(self, namespace, folder, zones, address="198.19.0.2", name="nsd"):
        super().__init__(namespace, folder, name)
        text = f"""server:
  ip-address: {address}
  username: ""
  zonesdir: "{self.folder}"
  pidfile: "{self.folder}/nsd.pid"
  xfrdfile: ""
  zonelistfile: "{self.folder}/zone.list"
  database: ""
  server-count: 1
  hide-version: yes
  minimal-responses: yes
  tcp-count: 200
  rrl-ratelimit: 0
remote-control:
  control-enable: no
"""
        for zone, records in zones.items():
            self.write(zone, SOA.format(zone=zone) + records)
            text += f'zone:\n  name: "{zone}"\n  zonefile: "{zone}"\n'
        self.launch([shutil.which("nsd") or "/usr/sbin/nsd", "-d", "-c", self.write("nsd.conf", text)])
        first = next(iter(zones))
        self.wait(lambda: answers(namespace, address, f"ns.{first}"), "nsd's first answer")


class Dnsmasq(Server):
    """A forwarder. `extra`: further options, one per line of its file."""

    def __init__(self, namespace, folder, address, upstream, extra="", name="dnsmasq"):
        super().__init__(namespace, folder, name)
        text = f"""no-resolv
no-hosts
keep-in-foreground
bind-interfaces
listen-address={address}
server={upstream}
user=root
pid-file=
cache-size=10000
dns-forward-max=10000
log-facility=-
{extra}
"""
        self.launch([shutil.which("dnsmasq") or "/usr/sbin/dnsmasq", "-C", self.write("dnsmasq.conf", text)])
        self.wait(lambda: answers(namespace, address), "dnsmasq's first answer")


def numbered_zone(count, networks, kind):
    """n0, n1, ... each with an address of its own out of `networks`, in order."""
    def addresses():
        for network in networks:
            yield from ipaddress.ip_network(network)

    source = addresses()
    return "".join(f"n{number} 300 {kind} {next(source)}\n" for number in range(count))


@contextlib.contextmanager
def nft(namespace, text):
    """A ruleset of the namespace's own, taken away again."""
    namespace.run("nft", "-f", "-", input=text)
    try:
        yield
    finally:
        namespace.run("nft", "flush", "ruleset")


class Unbound(Server):
    """A forwarder with a cache; one thread, as its peers."""

    def __init__(self, namespace, folder, address, upstream, name="unbound"):
        super().__init__(namespace, folder, name)
        text = f"""server:
  interface: {address}
  access-control: 0.0.0.0/0 allow
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "{self.folder}"
  pidfile: ""
  use-syslog: no
  logfile: ""
  num-threads: 1
  so-rcvbuf: 4m
  outgoing-range: 4096
  num-queries-per-thread: 4096
  msg-cache-size: 32m
  rrset-cache-size: 64m
  module-config: "iterator"
  minimal-responses: yes
  do-not-query-localhost: no
  local-zone: "18.198.in-addr.arpa." nodefault
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: {upstream}
"""
        self.launch([shutil.which("unbound") or "/usr/sbin/unbound", "-d", "-c", self.write("unbound.conf", text)])
        self.wait(lambda: answers(namespace, address), "unbound's first answer")


class Dnsdist(Server):
    """A load balancer with a packet cache."""

    def __init__(self, namespace, folder, address, upstream, name="dnsdist"):
        super().__init__(namespace, folder, name)
        text = f"""setLocal("{address}:53")
setACL({{"0.0.0.0/0", "::/0"}})
newServer({{address="{upstream}:53", healthCheckMode="up"}})
setMaxUDPOutstanding(65535)
cache = newPacketCache(100000, {{maxTTL=86400, minTTL=0}})
getPool(""):setCache(cache)
"""
        self.launch([shutil.which("dnsdist") or "/usr/bin/dnsdist", "--supervised", "--disable-syslog", "-C", self.write("dnsdist.conf", text)])
        self.wait(lambda: answers(namespace, address), "dnsdist's first answer")
