"""A reload that gives workloads to another discovery opens nothing and cuts nothing.

An instance is renamed, or a pattern moves from one instance to another, under allowed and denied traffic: at no moment is there no
filter, and none is left without its policy.
"""

import time

import pytest

from atomic import all_streams, expect_whole_streams
from cgroup_lab import CgroupLab
from lab import ALLOWED4, ALLOWED6, DENIED4, DENIED6, Lab
from machine import eventually, rounds
from workloads import Inhabitant

SOURCE = """
[plugin.static]
library  = "static"
policies = ["{policies}"]
"""


def instances(library, patterns):
    """Instances of one library and a wire for each. `patterns`: {instance: pattern}."""
    text = SOURCE
    for name, pattern in patterns.items():
        text += f'[plugin.{name}]\nlibrary = "{library}"\nmatch = ["{pattern}"]\nlabels = {{ class = "vm" }}\n'
    for name in patterns:
        text += f'[[wire]]\ntargets = {{ discovered_by = "{name}" }}\nsources = ["static"]\nmode = "block-all"\n'
    # What nobody names any more would be open: a filter that falls through shows.
    return text + '[[wire]]\nsources = []\nmode = "disabled"\n'


def renamed(library, pattern):
    return [instances(library, {name: pattern}) for name in ("first", "second")]


def moved(library, pattern):
    nowhere = pattern.replace("*", "nowhere")
    return [instances(library, {"first": one, "second": other}) for one, other in ((pattern, nowhere), (nowhere, pattern))]


def reload(daemon, config, meanwhile=lambda: time.sleep(0.01)):
    """Returns some time after it is done: a discovery lists what exists behind it. `meanwhile` is called all the time."""
    before = daemon.log().count("reloaded:")
    daemon.write_config(config)
    daemon.reload()
    eventually(lambda: meanwhile() or daemon.log().count("reloaded:") > before, "the reload", pause=0)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        meanwhile()


@pytest.mark.parametrize("change", [renamed, moved])
def test_an_interface_that_changes_hands_is_filtered_all_the_time(change):
    configs = change("interfaces", "h*")
    with Lab("routed") as lab:
        daemon = lab.daemon(config=configs[0])
        lab.wait_filtered(daemon)
        before = daemon.slot_of(ifindex=lab.host.ifindex("h1"))
        pulse = all_streams(lab)
        try:
            for number in range(rounds(50, 3)):
                reload(daemon, configs[(number + 1) % 2])
        finally:
            sent = pulse.stop()
        after = daemon.slot_of(ifindex=lab.host.ifindex("h1"))
        assert after and after["incarnation"] == before["incarnation"] and after["mode"] == 1
        expect_whole_streams(lab, sent)


@pytest.mark.parametrize("change", [renamed, moved])
def test_a_cgroup_that_changes_hands_is_filtered_all_the_time(change):
    with CgroupLab() as lab:
        configs = change("cgroups", f"{lab.parent.name}/*")
        daemon = lab.daemon(config=configs[0])
        workload = lab.workload(daemon)
        before = daemon.slot_of(cgroup_id=workload.id)
        with Inhabitant(lab.host, workload) as inhabitant:
            assert inhabitant.do("socket", 0, "udp", 4) == "ok 0" and inhabitant.do("socket", 1, "udp", 6) == "ok 0"
            answers = set()

            def send():
                for number, denied, allowed in ((0, DENIED4, ALLOWED4), (1, DENIED6, ALLOWED6)):
                    answers.add(("denied", inhabitant.do("sendto", number, denied, 9999, "c0ffee")))
                    answers.add(("allowed", inhabitant.do("sendto", number, allowed, 9999, "c0ffee")))

            for number in range(rounds(50, 3)):
                reload(daemon, configs[(number + 1) % 2], send)
                assert answers == {("denied", "EPERM"), ("allowed", "ok 3")}, daemon.log()
        after = daemon.slot_of(cgroup_id=workload.id)
        assert after and after["incarnation"] == before["incarnation"] and after["mode"] == 1
