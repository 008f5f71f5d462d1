"""The daemon's death opens nothing and cuts nothing.

kill -9, SIGTERM and upgrades under allowed and denied traffic: no denied packet passes, no allowed packet is lost, established
connections go on, and a TTL that ends while no daemon runs ends on time.
"""

import contextlib
import signal
import socket
import struct
import subprocess
import time

import pytest

from atomic import all_streams, expect_whole_streams
from daemon import INTERFACES_CONFIG
from cgroup_lab import CONFIG as CGROUP_CONFIG
from cgroup_lab import CgroupLab
from lab import ALLOWED4, ALLOWED6, ALLOWLIST, DENIED4, DENIED6, GUEST4, Lab
from machine import PATIENCE, eventually, find_program, rounds
from traffic import family_of, udp_exchange
from workloads import Inhabitant, Pulse


class Connections:
    """Established connections of a guest to allowed addresses; `talk` uses each."""

    def __init__(self, namespace, addresses=(ALLOWED4, ALLOWED6)):
        self.sockets = []
        for address in addresses:
            client = namespace.socket(family_of(address), socket.SOCK_STREAM)
            client.settimeout(PATIENCE)
            client.connect((address, 443))
            self.sockets.append(client)
        self.spoken = 0

    def talk(self):
        self.spoken += 1
        for client in self.sockets:
            word = struct.pack("!Q", self.spoken)
            client.sendall(word)
            assert client.recv(8, socket.MSG_WAITALL) == word

    def close(self):
        for client in self.sockets:
            client.close()


def die_by_kill(daemon):
    daemon.kill()


def die_by_term(daemon):
    assert daemon.terminate() == 0


def die_for_an_upgrade(daemon):
    """The next start is of another release, whose programs differ."""
    daemon.kill()
    daemon.program = "sluiced_next" if daemon.program == "sluiced" else "sluiced"


@pytest.mark.parametrize("death", [die_by_kill, die_by_term, die_for_an_upgrade])
def test_restarts_open_nothing_and_cut_nothing(death):
    with Lab("routed") as lab:
        lab.serve()
        daemon = lab.daemon()
        lab.wait_filtered(daemon)
        before = daemon.slot_of(ifindex=lab.host.ifindex("h1"))
        connections = Connections(lab.guest)
        pulse = all_streams(lab)
        try:
            count = rounds(200, 10)
            # A link is pinned once the device has gone from clsact to TCX, behind the attach.
            tags = eventually(lambda: (found := daemon.program_tags()) and len(found) >= 2 and found, "the pinned links")
            for _ in range(count):
                death(daemon)
                connections.talk()
                daemon.start()
                connections.talk()
                if death is die_for_an_upgrade:
                    before_upgrade, tags = tags, daemon.program_tags()
                    assert tags.keys() == before_upgrade.keys() and tags
                    assert all(tags[link] != before_upgrade[link] for link in tags), "each link runs the other release's program"
        finally:
            sent = pulse.stop()
            connections.close()
        after = daemon.slot_of(ifindex=lab.host.ifindex("h1"))
        assert after["incarnation"] == before["incarnation"], "adopted, not attached anew"
        expect_whole_streams(lab, sent)
        print(f"{death.__name__}: {count} deaths under {sum(sent)} packets")


def test_a_kill_at_any_moment_of_a_start_opens_nothing():
    """The daemon is killed before it is ready, a little later each time."""
    with Lab("routed") as lab:
        lab.serve()
        daemon = lab.daemon()
        lab.wait_filtered(daemon)
        pulse = all_streams(lab)
        try:
            daemon.kill()
            for number in range(rounds(200, 15)):
                daemon.start(wait=False)
                time.sleep(0.004 * (number % 50))
                daemon.kill()
            daemon.start()
            assert udp_exchange(lab.guest, ALLOWED4, 9999) == "ok"
        finally:
            sent = pulse.stop()
        expect_whole_streams(lab, sent)


def test_links_that_change_while_no_daemon_runs():
    """Deleted: its filter is forgotten. Made anew under the same name: another target, filtered as soon as a daemon is back."""
    with Lab("routed") as lab:
        lab.serve()
        daemon = lab.daemon()
        lab.wait_filtered(daemon)
        old = daemon.slot_of(ifindex=lab.host.ifindex("h1"))
        daemon.kill()
        lab.host.ip("link", "delete", "h1")
        lab.guest.delete()
        guest = lab.add_guest(1)
        daemon.start()
        lab.wait_filtered(daemon)
        new = daemon.slot_of(ifindex=lab.host.ifindex("h1"))
        assert new["incarnation"] != old["incarnation"]
        eventually(lambda: len(daemon.slots()) == 1, "the dead link's attachment forgotten")
        assert udp_exchange(guest, ALLOWED4, 9999) == "ok"
        assert udp_exchange(guest, DENIED4, 9999, timeout=0.5) != "ok"


def test_a_rename_while_no_daemon_runs_keeps_the_filter():
    with Lab("routed") as lab:
        lab.serve()
        daemon = lab.daemon()
        lab.wait_filtered(daemon)
        old = daemon.slot_of(ifindex=lab.host.ifindex("h1"))
        daemon.kill()
        lab.host.batch("link set h1 down\nlink set h1 name h2\nlink set h2 up")
        lab.host.batch(f"neigh replace {GUEST4} lladdr {':'.join(f'{b:02x}' for b in lab.guest_mac)} dev h2")
        daemon.start()
        lab.wait_filtered(daemon, "h2")
        assert daemon.slot_of(ifindex=lab.host.ifindex("h2"))["incarnation"] == old["incarnation"]


def test_policy_written_while_no_daemon_runs_holds_after_the_start():
    with Lab("routed") as lab:
        lab.serve()
        daemon = lab.daemon()
        lab.wait_filtered(daemon)
        daemon.terminate()
        daemon.write_policy("lab.toml", ALLOWLIST.replace("198.51.100.0/24", "203.0.113.0/24"))
        assert udp_exchange(lab.guest, ALLOWED4, 9999) == "ok", "what was in force is in force"
        daemon.start()
        eventually(lambda: udp_exchange(lab.guest, DENIED4, 9999, timeout=0.2, tries=1) == "ok", "the new policy")
        assert udp_exchange(lab.guest, ALLOWED4, 9999, timeout=0.5) != "ok"


WITH_TTL = """
[[policy]]
name  = "short"
match = { class = "vm" }
mode  = "allowlist"
[[policy.allow]]
cidrs = ["198.51.100.0/24"]
[[policy.allow]]
cidrs = ["203.0.113.0/24", "2001:db8:bad::/48"]
ttl   = "SECONDS"
"""


def test_a_ttl_ends_with_no_daemon_alive():
    """The clock of the last packet seen is compared with the moments between which the rule was made. Where the daemon died too late for
    that, nothing is shown: then with a longer TTL."""
    assert any(ttl_ends_with_no_daemon_alive(ttl) for ttl in (3, 15, 75)), "each stream before the end of the TTL"


def ttl_ends_with_no_daemon_alive(ttl):
    with Lab("routed") as lab:
        lab.serve()
        earliest = time.monotonic()
        daemon = lab.daemon(WITH_TTL.replace("SECONDS", f"{ttl}s"))
        lab.wait_filtered(daemon)
        latest = time.monotonic()
        pulse = Pulse(lab.guest, ("g1", lab.udp_frame(1, DENIED4)), ("g1", lab.udp_frame(2, DENIED6)),
                      ("g1", lab.udp_frame(3, ALLOWED4)), interval_us=1000)
        try:
            eventually(lambda: lab.arrived() >= {1, 2, 3} or time.monotonic() > latest + ttl, "each stream")
            daemon.kill()
            start, died = len(lab.sniffer.frames), time.monotonic()
            eventually(lambda: time.monotonic() > latest + ttl + 0.5, "the end of the TTL", patience=PATIENCE + ttl)
            lab.flush(lambda: lab.sender.send(lab.sentinel_frame()))
            end = len(lab.sniffer.frames)
            eventually(lambda: len(lab.sniffer.frames) > end + 200, "traffic after the end of the TTL")
        finally:
            pulse.stop()
        for number in (1, 2):
            marker = lab.marker(number)
            if marker not in b"".join(lab.sniffer.frames[start:end]):
                assert died > earliest + ttl - 1, "allowed on, after the daemon's death"
                return False
            last = max(at for frame, at in zip(lab.sniffer.frames, lab.sniffer.times) if marker in frame)
            assert earliest + ttl <= last + 0.1, "not before its time"
            assert marker not in b"".join(lab.sniffer.frames[end:]), "ended"
        assert lab.marker(3) in b"".join(lab.sniffer.frames[end:]), "what has no TTL stays"
        return True


@pytest.mark.parametrize("death", [die_by_kill, die_by_term, die_for_an_upgrade])
def test_cgroups_stay_filtered_and_connected(death):
    with CgroupLab() as lab:
        daemon = lab.start_filter(CGROUP_CONFIG)
        workload = lab.workload(daemon)
        with Inhabitant(lab.host, workload) as inhabitant:
            assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
            assert inhabitant.do("connect", 0, ALLOWED4, 443) == "ok 0"
            inhabitant.do("socket", 1, "udp", 4)

            def talk():
                assert inhabitant.do("send", 0, "c0ffee") == "ok 3"
                assert inhabitant.do("recv", 0, 60000) == "ok c0ffee"
                assert not lab.arrives(lambda mark: inhabitant.do("sendto", 1, DENIED4, 9999, mark))[0]

            for _ in range(rounds(100, 8)):
                death(daemon)
                talk()
                daemon.start()
                talk()


def test_a_cgroup_made_anew_under_its_name_is_another_target():
    with CgroupLab() as lab:
        daemon = lab.start_filter(CGROUP_CONFIG)
        workload = lab.workload(daemon)
        old = daemon.slot_of(cgroup_id=workload.id)
        for alive in (True, False):
            if not alive:
                daemon.kill()
            workload.remove()
            with contextlib.ExitStack() as later:
                if not alive:
                    later.callback(daemon.start)
                workload = lab.parent.add_child("w")
            eventually(lambda: (daemon.slot_of(cgroup_id=workload.id) or {}).get("mode") == 1, "the new cgroup under its policy")
            new = daemon.slot_of(cgroup_id=workload.id)
            assert new["incarnation"] != old["incarnation"]
            old = new


def test_sigterm_ends_quickly_and_says_goodbye():
    with Lab("routed") as lab:
        daemon = lab.daemon()
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE) == 0


def test_a_second_daemon_on_the_same_pins_is_refused_and_changes_nothing():
    """With a state directory of its own, and nothing to filter: it would take every filter for one that nobody claims."""
    with Lab("routed") as lab:
        lab.serve()
        first = lab.daemon()
        lab.wait_filtered(first)
        second = lab.daemon(config=INTERFACES_CONFIG.replace('"h*"', '"nothing*"'), start=False)
        own_pins, second.pins = second.pins, first.pins
        second.write_config(INTERFACES_CONFIG.replace('"h*"', '"nothing*"'))
        pulse = all_streams(lab)
        try:
            second.start(wait=False)
            assert second.process.wait(PATIENCE) == 1
            for said in (first.pins, f"process {first.process.pid}", "stop it first", "host.bpffs"):
                assert said in second.log(), second.log()
            done = subprocess.run([find_program("sluiced"), "--detach-all", "--config", second.config_file], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
            assert done.returncode == 1 and f"process {first.process.pid}" in done.stdout, done.stdout
            assert first.is_running() and len(first.slots()) == 1
        finally:
            sent = pulse.stop()
        expect_whole_streams(lab, sent)
        first.kill()  # the lock goes with the process
        second.start()
        second.stop()
        second.pins = own_pins
