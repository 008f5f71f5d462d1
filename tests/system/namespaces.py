"""Network namespaces that the tests make.

`nsenter` semantics throughout: a thread enters a network namespace and keeps its mounts, so cgroupfs and bpffs stay visible.
"""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess

from machine import LabError, checked, die_with_parent, libc, remember, run

_CLONE_NEWNET = 0x40000000


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
            checked(libc.setns(there, _CLONE_NEWNET), f"setns {self.name}")
            try:
                yield self
            finally:
                checked(libc.setns(home, _CLONE_NEWNET), "setns home")
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
            process = subprocess.Popen(words, preexec_fn=die_with_parent, **options)
        remember(process.pid)
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
