"""No open window: with the guards on, a workload that sends from its first moment reaches nothing before its policy stands.

Also when a name or an ifindex is used again by another tenant. Without the guards the time from creation to filter is measured
and printed.
"""

import contextlib
import os
import socket
import statistics
import subprocess
import time

import pytest

from lab import ALLOWED4, DENIED4, Lab
from machine import eventually, find_program, rounds
from packets import PacketSocket
from workloads import Pulse

TENANTS = """
[[policy]]
name  = "a"
match = { tenant = "a" }
mode  = "allowlist"
[[policy.allow]]
cidrs = ["198.51.100.0/24"]

[[policy]]
name  = "b"
match = { tenant = "b" }
mode  = "allowlist"
[[policy.allow]]
cidrs = ["203.0.113.0/24"]
"""

STATIC = """
[plugin.static]
library  = "static"
policies = ["{policies}"]
"""

BY_BRIDGE = """
[plugin.a]
library = "interfaces"
match   = ["*"]
bridge  = ["bra"]
labels  = { tenant = "a" }

[plugin.b]
library = "interfaces"
match   = ["*"]
bridge  = ["brb"]
labels  = { tenant = "b" }
""" + STATIC + """
[[wire]]
targets = { discovered_by = "a" }
sources = ["static"]
mode    = "block-all"

[[wire]]
targets = { discovered_by = "b" }
sources = ["static"]
mode    = "block-all"
"""

GUARDED = """
[guard]
uplinks = ["uplink"]
"""

A_TO_A, A_TO_B, B_TO_A, B_TO_B = 1, 2, 3, 4
INTERNET_OF = {"a": ALLOWED4, "b": DENIED4}


class UplinkLab(Lab):
    """A host that forwards for two bridges; the guests' links come and go."""

    def _build_uplinks(self):
        self._uplink()
        self.guest = self.namespace("guest")
        for number, tenant in enumerate("ab", 1):
            self.host.batch(f"""
                link add br{tenant} address 02:00:00:00:00:0{number} type bridge mcast_snooping 0
                addr add 198.18.{number}.1/24 dev br{tenant}
                link set br{tenant} up
                """)
        self.gateway_mac, self.guest_mac = bytes(6), bytes.fromhex("020000000099")

    def __init__(self):
        super().__init__("uplinks")
        self.waits = []

    def frame(self, tenant, number, destination):
        return self.udp_frame(number, destination, source="198.18.1.2" if tenant == "a" else "198.18.2.2",
                              destination_mac=self.host.mac("br" + tenant))

    def streams(self):
        return [("ga", self.frame("a", A_TO_A, INTERNET_OF["a"])), ("ga", self.frame("a", A_TO_B, INTERNET_OF["b"])),
                ("gb", self.frame("b", B_TO_B, INTERNET_OF["b"])), ("gb", self.frame("b", B_TO_A, INTERNET_OF["a"]))]

    def round(self, tenant, index=None, until=lambda: True):
        """The link appears, the guest sends at once; when what its policy allows arrives (and `until` holds), it goes again."""
        start = len(self.sniffer.frames)
        wanted = A_TO_A if tenant == "a" else B_TO_B
        with_index = f"index {index} " if index else ""
        began = time.monotonic()
        # The guest's end is up before the host's is a port of anything.
        self.host.batch(f"""
            link add h1 {with_index}type veth peer name g{tenant} netns {self.guest.name}
            link set h1 up
            """)
        self.guest.ip("link", "set", "g" + tenant, "up")
        self.host.ip("link", "set", "h1", "master", "br" + tenant)
        eventually(lambda: wanted in self.arrived(start), f"allowed traffic of tenant {tenant}", pause=0.002)
        self.waits.append(time.monotonic() - began)
        eventually(until, f"tenant {tenant} under its policy")
        self.host.ip("link", "delete", "h1")


def tell(what, seconds):
    ordered = sorted(seconds)
    print(f"{what}: median {1000 * statistics.median(ordered):.1f} ms, most {1000 * ordered[-1]:.1f} ms, {len(ordered)} rounds")


@pytest.mark.parametrize("index", [None, 7000], ids=["name-used-again", "ifindex-used-again"])
def test_no_packet_before_the_policy_and_none_by_the_policy_of_another(index):
    with UplinkLab() as lab:
        lab.filter = lab.daemon(TENANTS, BY_BRIDGE + GUARDED)
        pulse = Pulse(lab.guest, *lab.streams(), interval_us=100)
        try:
            for number in range(rounds(1000, 60)):
                lab.round("ab"[number % 2], index)
        finally:
            sent = pulse.stop()
        assert all(count > 0 for count in sent), "each tenant tried both ways"
        tell("from creation to allowed traffic, guard on", lab.waits)
        assert sorted(lab.arrived() & {A_TO_B, B_TO_A}) == [], "a packet left by the policy of another, or before any"


def test_control_the_same_traffic_arrives_when_nothing_filters():
    with UplinkLab() as lab:
        pulse = Pulse(lab.guest, *lab.streams(), interval_us=100)
        try:
            for tenant in "abab":
                lab.round(tenant)
            eventually(lambda: lab.arrived() >= {A_TO_A, A_TO_B, B_TO_A, B_TO_B}, "every stream beyond the uplink")
        finally:
            pulse.stop()


def test_the_guard_stops_what_nobody_filters_and_passes_what_is_trusted():
    """A link that no discovery wants is closed as long as the operator has not declared it trusted."""
    for trusted in (False, True):
        with UplinkLab() as lab:
            guard = GUARDED + ('trusted = ["other"]\n' if trusted else "")
            lab.daemon(TENANTS, BY_BRIDGE + guard)
            lab.host.batch(f"""
                link add other type veth peer name ga netns {lab.guest.name}
                addr add 198.18.3.1/24 dev other
                link set other up
                """)
            lab.guest.ip("link", "set", "ga", "up")
            pulse = Pulse(lab.guest, ("ga", lab.udp_frame(9, ALLOWED4, source="198.18.3.2", destination_mac=lab.host.mac("other"))))
            try:
                with contextlib.closing(lab.host.socket(socket.AF_INET, socket.SOCK_DGRAM)) as witness:
                    if trusted:
                        eventually(lambda: 9 in lab.arrived(), "traffic of the trusted link")
                    else:
                        for _ in range(20):
                            lab.flush(lambda: witness.sendto(lab.marker(lab.SENTINEL), (ALLOWED4, 9)))
                        assert 9 not in lab.arrived()
            finally:
                assert pulse.stop()[0] > 0


MECHANISMS = pytest.mark.parametrize("mechanism", ["tcx", "clsact"])


class GuardedLab(UplinkLab):
    """Beside the bridges a link that nothing filters."""

    def __init__(self, mechanism, config=BY_BRIDGE + GUARDED):
        super().__init__()
        self.numbers = iter(range(100, 0xFFFF))
        try:
            self.filter = self.daemon(TENANTS, config, extra_host=f'tc_mechanism = "{mechanism}"\n')
            self.host.batch(f"""
                link add other type veth peer name ga netns {self.guest.name}
                addr add 198.18.3.1/24 dev other
                link set other up
                """)
            self.guest.ip("link", "set", "ga", "up")
            self.sender = PacketSocket(self.guest, "ga")
            self.cleanups.callback(self.sender.close)
        except BaseException:
            self.close()
            raise

    def forwards(self):
        """Does what nobody filters pass the uplink?"""
        number = next(self.numbers)
        with contextlib.closing(self.host.socket(socket.AF_INET, socket.SOCK_DGRAM)) as witness:
            for _ in range(3):
                self.sender.send(self.udp_frame(number, ALLOWED4, source="198.18.3.2", destination_mac=self.host.mac("other")))
                self.flush(lambda: witness.sendto(self.marker(self.SENTINEL), (ALLOWED4, 9)))
        return number in self.arrived()

    def filters(self):
        return self.host.run("tc", "filter", "show", "dev", "uplink", "egress")


@MECHANISMS
def test_a_guard_that_is_no_longer_wanted_is_gone_after_a_reload(mechanism):
    with GuardedLab(mechanism) as lab:
        assert not lab.forwards()
        lab.filter.write_config(BY_BRIDGE)
        lab.filter.reload()
        eventually(lab.forwards, "traffic, once the guard is gone")
        assert "sluice" not in lab.filters()
        lab.filter.write_config(BY_BRIDGE + GUARDED)
        lab.filter.reload()
        eventually(lambda: not lab.forwards(), "the guard again")


@MECHANISMS
def test_detach_all_removes_the_guard_too(mechanism):
    with GuardedLab(mechanism) as lab:
        assert not lab.forwards()
        lab.filter.stop()
        assert not lab.forwards(), "the guard outlives the daemon"
        lab.host.run(find_program("sluiced"), "--detach-all", "--config", lab.filter.config_file)
        assert lab.forwards()
        assert "sluice" not in lab.filters()


@MECHANISMS
def test_an_uplink_that_is_a_target_as_well_keeps_its_guard(mechanism):
    """Attaching it does not replace the guard, detaching it does not remove it."""
    both = BY_BRIDGE.replace('bridge  = ["bra"]', "", 1).replace('match   = ["*"]', 'match   = ["uplink"]', 1)
    with GuardedLab(mechanism, both + GUARDED) as lab:
        assert not lab.forwards()
        ifindex = lab.host.ifindex("uplink")
        eventually(lambda: lab.filter.slot_of(ifindex=ifindex), "the uplink under a filter of its own")
        assert not lab.forwards()
        lab.filter.write_config(BY_BRIDGE + GUARDED)
        lab.filter.stop()
        lab.filter.start()
        eventually(lambda: not lab.filter.slot_of(ifindex=ifindex), "the uplink without it")
        assert not lab.forwards()


def test_a_guard_that_someone_removes_is_set_again():
    with GuardedLab("clsact") as lab:
        for _ in range(2):
            assert not lab.forwards()
            lab.host.run("tc", "qdisc", "delete", "dev", "uplink", "clsact")
            assert "sluice" not in lab.filters()
            eventually(lambda: "sluice_uplink" in lab.filters(), "the guard again")
        assert not lab.forwards()
        assert "uplink: its filter was removed by someone else; setting it again" in lab.filter.log(whole=True)


def test_measured_window_without_the_guard():
    """Not a promise: what the guard is for. Packets to an address that policy denies, until the filter stands."""
    windows, packets = [], []
    with UplinkLab() as lab:
        daemon = lab.daemon(TENANTS, BY_BRIDGE)
        pulse = Pulse(lab.guest, *lab.streams(), interval_us=50)
        try:
            for _ in range(rounds(100, 15)):
                start = len(lab.sniffer.frames)
                lab.round("a", until=lambda: any(slot["mode"] == 1 for slot in daemon.slots()))
                marker = lab.marker(A_TO_B)
                times = [at for frame, at in zip(lab.sniffer.frames[start:], lab.sniffer.times[start:]) if marker in frame]
                windows.append(times[-1] - times[0] if times else 0.0)
                packets.append(len(times))
        finally:
            pulse.stop()
    tell(f"from first packet to filter, guard off (up to {max(packets)} packets left)", windows)


# ---- cgroups ----------------------------------------------------------------------------------------------------------------

BY_CGROUP = """
[plugin.groups]
library = "cgroups"
match   = ["{parent}/{tenant}-*"]
""" + STATIC + """
[[wire]]
targets = { discovered_by = "groups" }
sources = ["static"]
mode    = "block-all"
"""


class NewcomerLab(Lab):
    def __init__(self):
        super().__init__("host")
        self.parent = self.cgroup("parent")
        self.waits = []

    def round(self, tenant, number, last=b"\0", until=lambda: True):
        """A process that is in its new cgroup from its first instruction and sends to both internets."""
        start = len(self.sniffer.frames)
        began = time.monotonic()
        process = self.host.popen([find_program("newcomer"), f"{self.parent.path}/{tenant}-w", "9", self.marker(number).hex(),
                                   INTERNET_OF[tenant], INTERNET_OF["b" if tenant == "a" else "a"]], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "made\n"
            eventually(lambda: self.marker(number) + last in b"".join(self.sniffer.frames[start:]),
                       f"allowed traffic of tenant {tenant}", pause=0.002)
            self.waits.append(time.monotonic() - began)
            eventually(until, f"tenant {tenant} under its policy")
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()
        assert not os.path.exists(f"{self.parent.path}/{tenant}-w")


def forbidden(lab, number):
    return [frame for frame in lab.sniffer.frames if lab.marker(number) + b"\1" in frame]


def cgroup_config(lab, guarded):
    config = BY_CGROUP.replace("{parent}", lab.parent.name)
    return config + (f'\n[guard]\ncgroups = ["{lab.parent.name}"]\n' if guarded else "")


def test_no_packet_of_a_new_cgroup_before_its_policy():
    with NewcomerLab() as lab:
        lab.daemon(TENANTS, cgroup_config(lab, guarded=True))
        for number in range(rounds(1000, 60)):
            lab.round("ab"[number % 2], 1)
        tell("from a new cgroup's first packet to allowed traffic, guard on", lab.waits)
        assert forbidden(lab, 1) == []


def test_control_newcomers_reach_everything_when_nothing_filters():
    with NewcomerLab() as lab:
        for tenant in "ab":
            lab.round(tenant, 1, last=b"\1")
        assert forbidden(lab, 1)


def test_measured_window_of_a_new_cgroup_without_the_guard():
    with NewcomerLab() as lab:
        daemon = lab.daemon(TENANTS, cgroup_config(lab, guarded=False))
        windows = []
        for number in range(rounds(100, 15)):
            start = len(lab.sniffer.frames)
            lab.round("ab"[number % 2], 1, until=lambda: any(slot["mode"] == 1 for slot in daemon.slots()))
            times = [at for frame, at in zip(lab.sniffer.frames[start:], lab.sniffer.times[start:]) if lab.marker(1) + b"\1" in frame]
            windows.append(times[-1] - times[0] if times else 0.0)
        tell("from a new cgroup's first packet to filter, guard off", windows)
