#!/usr/bin/env python3
"""What the quickstart's guest tries, and the table of what came of it. Called by ../quickstart.sh, one phase at a time."""

import contextlib
import ctypes
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time

NAME = "sluice-quickstart"
libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(role):
    """Sockets opened here belong to that network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{NAME}-{role}", os.O_RDONLY)
    try:
        if libc.setns(there, 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), f"setns {role}")
        yield
        libc.setns(home, 0x40000000)
    finally:
        os.close(home)
        os.close(there)


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Internet:
    """Answers TCP on some ports, and notes every packet that arrives."""

    def __init__(self):
        self.frames = []
        with inside("internet"):
            self.sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            listeners = [socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) for port in (443, 22, 80, 853)]
        self.sniffer.bind(("eth0", 3))
        threading.Thread(target=self._watch, daemon=True).start()
        for listener in listeners:
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _watch(self):
        while True:
            frame, address = self.sniffer.recvfrom(65536)
            if address[2] != 4:  # not what it sends itself
                self.frames.append(frame)

    @staticmethod
    def _serve(listener):
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError):
                connection.sendall(connection.recv(64))
            connection.close()

    def saw(self, mark):
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline:
            if any(mark in frame for frame in list(self.frames)):
                return True
            time.sleep(0.005)
        return False


def tcp(address, port):
    def attempt(_):
        with inside("guest"):
            client = socket.socket(family_of(address), socket.SOCK_STREAM)
        with client:
            client.settimeout(1.5)
            began = time.monotonic()
            try:
                client.connect((address, port))
                client.sendall(b"hello")
                return client.recv(5) == b"hello", None
            except OSError:
                return False, time.monotonic() - began
    return attempt


# What any program does, in a process of its own: ask the C library, connect to what it says. The guest has its own resolv.conf.
LOOK_UP_AND_CONNECT = """
import socket, sys, time
began = time.monotonic()
try:
    for family, kind, protocol, _, to in socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), socket.AF_UNSPEC, socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as client:
            client.settimeout(1.5)
            client.connect(to)
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
    print("through")
except OSError:
    print("stopped", time.monotonic() - began)
"""


def named(name, port):
    def attempt(_):
        words = ["nsenter", f"--net=/run/netns/{NAME}-guest", "unshare", "--mount", "sh", "-c",
                 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"', "sh", f"{RUN}/resolv.conf",
                 sys.executable, "-c", LOOK_UP_AND_CONNECT, name, str(port)]
        answer = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        return answer[0] == "through", float(answer[1]) if len(answer) > 1 else None
    return attempt


def ping(address):
    def attempt(internet):
        mark = os.urandom(16)
        six = ":" in address
        with inside("guest"):
            client = socket.socket(family_of(address), socket.SOCK_RAW, 58 if six else 1)
        body = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 7, 1) + mark
        with client:
            if not six:
                total = sum(struct.unpack(f"!{len(body) // 2}H", body))
                total = (total & 0xFFFF) + (total >> 16)
                body = body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]
            client.sendto(body, (address, 0))
            client.settimeout(1)
            with contextlib.suppress(OSError):
                while mark not in (answer := client.recv(256)):
                    pass
                # The answer, or the filter's "prohibited", which quotes the question.
                kind = answer[0] if six else answer[20]
                return kind == (129 if six else 0), None
        return False, None
    return attempt


def raw(address, protocol, body=b"", options=b""):
    """An IPv4 packet as a program with a raw socket would make it; through means: seen in the internet."""
    def attempt(internet):
        mark = os.urandom(16)
        with inside("guest"):
            client = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
        with client:
            if options:
                client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
            with contextlib.suppress(OSError):
                client.sendto(body + mark, (address, 0))
        return internet.saw(mark), None
    return attempt


def inbound(_):
    """Somebody outside opens a connection to the guest; the guest may answer, though it may not dial that address."""
    with inside("guest"):
        listener = socket.create_server(("198.18.1.2", 8080))
    with inside("internet"):
        client = socket.socket()
    with listener, client:
        client.bind(("203.0.113.66", 0))
        client.settimeout(1.5)
        listener.settimeout(1.5)
        try:
            client.connect(("198.18.1.2", 8080))
            server, _ = listener.accept()
            with server:
                server.sendall(b"hello")
                return client.recv(5) == b"hello", None
        except OSError:
            return False, None


RUN = sys.argv[2]
ROWS = [  # what, to, attempt, address or name that the journal names
    ("HTTPS to an allowed name", "packages.example tcp/443", named("packages.example", 443), None),
    ("a name below an allowed zone", "cdn.files.example tcp/443", named("cdn.files.example", 443), None),
    ("any other name", "exfil.example tcp/443", named("exfil.example", 443), "exfil.example"),
    ("data inside a question", "c2VjcmV0.exfil.example", named("c2VjcmV0.exfil.example", 443), "c2vjcmv0.exfil.example"),
    ("a name that leads inside", "inside.files.example tcp/443", named("inside.files.example", 443), "inside.files.example"),
    ("HTTPS to an allowed network", "198.51.100.10 tcp/443", tcp("198.51.100.10", 443), None),
    ("the same by IPv6", "2001:db8:a::10 tcp/443", tcp("2001:db8:a::10", 443), None),
    ("ping it", "198.51.100.10 icmp", ping("198.51.100.10"), None),
    ("answer a caller from outside", "203.0.113.66 tcp/8080", inbound, None),
    ("another port of that network", "198.51.100.10 tcp/22", tcp("198.51.100.10", 22), "198.51.100.10"),
    ("a denied host inside it", "198.51.100.99 tcp/443", tcp("198.51.100.99", 443), "198.51.100.99"),
    ("any other address", "203.0.113.66 tcp/443", tcp("203.0.113.66", 443), "203.0.113.66"),
    ("any other IPv6 address", "2001:db8:bad::66 tcp/443", tcp("2001:db8:bad::66", 443), "2001:db8:bad::66"),
    ("the cloud's metadata", "169.254.169.254 tcp/80", tcp("169.254.169.254", 80), "169.254.169.254"),
    ("DNS over TLS", "203.0.113.53 tcp/853", tcp("203.0.113.53", 853), "203.0.113.53"),
    ("a GRE tunnel", "203.0.113.47 gre", raw("203.0.113.47", 47, b"\0\0\x08\0"), "203.0.113.47"),
    ("a made-up protocol", "203.0.113.25 proto/253", raw("203.0.113.25", 253), "203.0.113.25"),
]
AFTER_DEATH = [next(row for row in ROWS if row[0] == what) for what in ("HTTPS to an allowed network", "any other address")]


def try_all(rows, internet):
    return [attempt(internet) for _, _, attempt, _ in rows]


def remember(run, **results):
    path = f"{run}/results.json"
    known = json.load(open(path)) if os.path.exists(path) else {}
    known.update(results)
    json.dump(known, open(path, "w"))
    return known


def reason(run, what):
    """What the journal says of a denied address or name."""
    deadline = time.monotonic() + 3  # it writes a window of events at a time
    while time.monotonic() < deadline:
        with open(f"{run}/journal") as file:
            for line in file:
                record = json.loads(line)
                if what in (record.get("destination"), record.get("name")) and record.get("reason"):
                    return record["reason"]
        time.sleep(0.05)
    return ""


def wait(run, pid):
    """Until the daemon says that it is ready."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        log = open(f"{run}/log").read()
        if re.search(r"\bready\b", log):
            return 0
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.02)
    print(f"quickstart: sluiced did not become ready; its log:\n{open(f'{run}/log').read()}", file=sys.stderr)
    return 1


def table(run):
    results = remember(run)
    log = open(f"{run}/log").read()
    colours = sys.stdout.isatty()

    def paint(text, code):
        return f"\033[{code}m{text}\033[0m" if colours else text

    def cell(result, width):
        through, seconds = result
        text = "through" if through else "stopped" + (f" in {max(1, round(seconds * 1000))} ms" if seconds is not None and seconds < 1 else "")
        return paint(text.ljust(width), "32" if through else "31;1")

    print(f"\n  {paint('The guest tries', '1'):<{30 + (8 if colours else 0)}} {'to':<28} {'without':<9} {'with Sluice':<16} because")
    print("  " + "─" * 110)
    surprises = []
    for (what, to, _, address), without, filtered in zip(ROWS, results["without"], results["with"]):
        why = reason(run, address) if address else "a reply" if what.startswith("answer") else "allowed"
        print(f"  {what:<30} {to:<28} {cell(without, 9)} {cell(filtered, 16)} {why}")
        if not without[0] or filtered[0] != (address is None):
            surprises.append(what)
    print("  " + "─" * 110)
    for (what, to, _, address), dead in zip(AFTER_DEATH, results["dead"]):
        print(f"  {what:<30} {to:<28} {'':<9} {cell(dead, 16)} the daemon was killed; its filter stays")
        if dead[0] != (address is None):
            surprises.append(what + ", daemon dead")
    print()
    if surprises:
        print(f"quickstart: not as it should be: {', '.join(surprises)}; the log is:\n{log}", file=sys.stderr)
    return 1 if surprises else 0


def main():
    phase, run = sys.argv[1], sys.argv[2]
    if phase == "wait":
        return wait(run, sys.argv[3])
    if phase == "table":
        return table(run)
    remember(run, **{phase: try_all(AFTER_DEATH if phase == "dead" else ROWS, Internet())})
    return 0


sys.exit(main())
