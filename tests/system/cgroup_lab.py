"""The host with its uplink, and cgroups whose children are filtered once a daemon runs."""

import contextlib
import socket

import pytest

from lab import ALLOWED4, Lab
from machine import eventually

CONFIG = """
[plugin.groups]
library = "cgroups"
match   = ["{parent}/*"]
labels  = { class = "vm" }

[plugin.static]
library  = "static"
policies = ["{policies}"]

[guard]
uplinks = ["uplink"]

[[wire]]
targets = { discovered_by = "groups" }
sources = ["static"]
mode    = "block-all"
"""

SOURCE4, SOURCE6 = "198.19.0.1", "2001:db8:ffff::1"


class CgroupLab(Lab):
    """`parent` is the one whose children are filtered, `outside` is filtered by nobody."""

    def __init__(self):
        super().__init__("host")
        try:
            self.serve()
            self.parent = self.cgroup("parent")
            self.outside = self.cgroup("outside")
            self.numbers = iter(range(1, 0xFFFF))
        except BaseException:
            self.close()
            raise

    def start_filter(self, config=CONFIG, **options):
        daemon = self.daemon(config=config.replace("{parent}", self.parent.name), **options)
        return daemon

    def workload(self, daemon, name="w"):
        """A child cgroup under its policy."""
        child = self.parent.add_child(name)
        eventually(lambda: (daemon.slot_of(cgroup_id=child.id) or {}).get("mode") == 1, f"{child.name} under its policy")
        return child

    def flush_host(self):
        """Everything sent before has arrived. The sentinel comes from a socket outside every filtered cgroup."""
        with contextlib.closing(self.host.socket(socket.AF_INET, socket.SOCK_DGRAM)) as witness:
            self.flush(lambda: witness.sendto(self.marker(self.SENTINEL), (ALLOWED4, 9999)))

    def arrives(self, action):
        """Does a marker that `action(hex)` sends arrive?"""
        number = next(self.numbers)
        start = len(self.sniffer.frames)
        answers = action(self.marker(number).hex() + "00" * 12)
        self.flush_host()
        return number in self.arrived(start), answers


@pytest.fixture(scope="module")
def place():
    with CgroupLab() as lab:
        lab.filter = None
        yield lab


@pytest.fixture(scope="module")
def workload(place):
    place.filter = place.start_filter()
    return place.workload(place.filter)
