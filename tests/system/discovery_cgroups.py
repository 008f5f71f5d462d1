"""The cgroups plugin in the daemon: what is in the kernel follows the cgroup tree, whatever happens to it."""

import os

import pytest

from lab import DENIED4, Lab
from machine import eventually
from workloads import Inhabitant

BLOCK_ALL, ALLOWLIST, DENYLIST = 0, 1, 2

CONFIG = """
[plugin.groups]
library = "cgroups"
match   = ["{top}/tenants/{tenant}/{vm_id}.scope", "{top}/deep/**"]
exclude = ["{top}/tenants/*/mgmt.scope", "{top}/deep/private/**"]
labels  = { class = "vm" }

[[wire]]
targets = { discovered_by = "groups", labels = { tenant = "acme" } }
sources = []
mode    = "denylist"

[[wire]]
targets = { discovered_by = "groups" }
sources = []
mode    = "block-all"
"""


class Place(Lab):
    """The host with its uplink, and a cgroup of our own to build a tree in."""

    def __init__(self):
        super().__init__("host")
        try:
            self.serve()
            self.top = self.cgroup("tree")
        except BaseException:
            self.close()
            raise

    def start_daemon(self):
        return self.daemon(policy={}, config=CONFIG.replace("{top}", self.top.name))

    def make(self, *paths):
        for path in paths:
            os.makedirs(f"{self.top.path}/{path}", exist_ok=True)

    def remove(self, *paths):
        """Each with all below it."""
        for path in paths:
            for folder, _, _ in list(os.walk(f"{self.top.path}/{path}", topdown=False)):
                os.rmdir(folder)

    def expect(self, daemon, wanted):
        """Exactly these cgroups are attached, each in its mode."""
        def present():
            return {slot["cgroup_id"]: slot["mode"] for slot in daemon.slots() if slot["cgroup_id"]}

        numbers = {os.stat(f"{self.top.path}/{path}").st_ino: mode for path, mode in wanted.items()}
        try:
            eventually(lambda: present() == numbers, f"{len(wanted)} attachments")
        except AssertionError as error:
            raise AssertionError(f"{error}: there are {present()}, wanted {numbers}; the log is:\n{daemon.log()}") from None


@pytest.fixture
def place():
    with Place() as lab:
        yield lab


def test_attachments_follow_the_tree(place):
    place.make("tenants/acme/1.scope", "tenants/globex/2.scope", "tenants/globex/mgmt.scope", "elsewhere/x/3.scope")
    daemon = place.start_daemon()
    wanted = {"tenants/acme/1.scope": DENYLIST, "tenants/globex/2.scope": BLOCK_ALL}
    place.expect(daemon, wanted)

    place.make("tenants/acme/4.scope", "tenants/initech/5.scope", "deep/a/b", "deep/private/c")
    wanted |= {"tenants/acme/4.scope": DENYLIST, "tenants/initech/5.scope": BLOCK_ALL, "deep/a": BLOCK_ALL,
               "deep/a/b": BLOCK_ALL, "deep/private": BLOCK_ALL}
    place.expect(daemon, wanted)

    # The same name is another cgroup.
    before = os.stat(f"{place.top.path}/tenants/acme/1.scope").st_ino
    place.remove("tenants/acme/1.scope")
    place.make("tenants/acme/1.scope")
    assert os.stat(f"{place.top.path}/tenants/acme/1.scope").st_ino != before
    place.expect(daemon, wanted)

    place.remove("tenants", "deep")
    place.expect(daemon, {})
    place.make("tenants/acme/6.scope")
    place.expect(daemon, {"tenants/acme/6.scope": DENYLIST})


def test_a_process_is_filtered_from_its_cgroups_discovery_on(place):
    daemon = place.start_daemon()
    place.make("tenants/globex/7.scope", "tenants/acme/8.scope", "other")
    place.expect(daemon, {"tenants/globex/7.scope": BLOCK_ALL, "tenants/acme/8.scope": DENYLIST})
    answers = {}
    for path in ("tenants/globex/7.scope", "tenants/acme/8.scope", "other"):
        process = Inhabitant(place.host)
        try:
            with open(f"{place.top.path}/{path}/cgroup.procs", "w") as procs:
                procs.write(str(process.process.pid))
            process.do("socket", 0, "udp", 4)
            answers[path] = process.do("connect", 0, DENIED4, 9999)
        finally:
            process.close()
    assert answers["tenants/globex/7.scope"] == "EPERM"
    assert answers["tenants/acme/8.scope"].startswith("ok")
    assert answers["other"].startswith("ok")


def test_a_storm_ends_with_both_sides_equal(place):
    place.make("tenants/t")
    daemon = place.start_daemon()
    paths = [f"tenants/t/{i}.scope" for i in range(150)]
    for round in range(6):
        place.make(*paths)
        place.remove(*paths)
    place.make(*paths[::2])
    place.expect(daemon, dict.fromkeys(paths[::2], BLOCK_ALL))


def test_what_changed_while_no_daemon_ran_is_put_right_by_the_next(place):
    place.make(*(f"tenants/t/{i}.scope" for i in range(4)))
    daemon = place.start_daemon()
    place.expect(daemon, {f"tenants/t/{i}.scope": BLOCK_ALL for i in range(4)})
    daemon.kill()
    place.remove("tenants/t/0.scope", "tenants/t/1.scope")
    place.make("tenants/t/1.scope", "tenants/t/9.scope")
    daemon.start()
    place.expect(daemon, {f"tenants/t/{i}.scope": BLOCK_ALL for i in (1, 2, 3, 9)})
