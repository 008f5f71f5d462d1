"""What the daemon needs, and what it says when it does not get it."""

import os
import pwd
import re
import shutil
import subprocess

import dns.message
import dns.query
import pytest
from daemon import names_config, plugin_folders
from lab import ALLOWED4, DENIED4, Lab
from machine import PATIENCE, REPOSITORY, find_program, run
from scripted_upstream import ScriptedUpstream, records
from traffic import tcp_exchange, udp_exchange

NOBODY = pwd.getpwnam("nobody").pw_uid
CAPABILITIES = ["bpf", "net_admin", "perfmon"]


def as_nobody(capabilities):
    listed = ",".join("+" + name for name in capabilities)
    # A sanitizer's leak checker traces its own process, which one with more privileges than its user may not do.
    leakless = f"ASAN_OPTIONS={os.environ.get('ASAN_OPTIONS', '')}:detect_leaks=0"
    return ["env", leakless, "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", f"--bounding-set=-all{',' + listed if listed else ''}",
            f"--inh-caps=-all{',' + listed if listed else ''}", f"--ambient-caps=-all{',' + listed if listed else ''}"]


@pytest.fixture
def place():
    with Lab("routed") as lab:
        lab.serve()
        yield lab


def hand_over(daemon):
    """State and pins belong to the unprivileged user, as a service manager would arrange."""
    os.makedirs(daemon.state)
    os.makedirs(daemon.pins)
    for path in (daemon.state, daemon.pins):
        os.chown(path, NOBODY, NOBODY)


def filters(lab, daemon):
    lab.wait_filtered(daemon)
    assert udp_exchange(lab.guest, ALLOWED4, 9999) == "ok"
    assert udp_exchange(lab.guest, DENIED4, 9999, timeout=0.5) != "ok"


def test_runs_as_an_unprivileged_user_with_three_capabilities(place):
    daemon = place.daemon(start=False, wrapper=as_nobody(CAPABILITIES))
    hand_over(daemon)
    daemon.start()
    status = open(f"/proc/{daemon.process.pid}/status").read()
    assert re.search(rf"^Uid:\s+{NOBODY}\s", status, re.MULTILINE)
    filters(place, daemon)
    daemon.kill()
    daemon.start()
    filters(place, daemon)


@pytest.mark.parametrize("missing", CAPABILITIES)
def test_a_missing_capability_is_named(place, missing):
    daemon = place.daemon(start=False, wrapper=as_nobody([name for name in CAPABILITIES if name != missing]))
    hand_over(daemon)
    daemon.start(wait=False)
    assert daemon.process.wait(PATIENCE) != 0
    assert f"CAP_{missing.upper()}" in daemon.log()


NAMES = """
[[policy]]
name  = "names"
match = { class = "vm" }
mode  = "allowlist"
[[policy.allow]]
domains = ["www.names.example"]
"""


def test_the_service_unit_grants_what_the_resolver_needs_as_well():
    with open(f"{REPOSITORY}/config/systemd/sluiced.service.in") as unit:
        granted = re.search(r"^CapabilityBoundingSet=(.*)$", unit.read(), re.MULTILINE).group(1).lower().replace("cap_", "").split()
    with Lab("routed") as lab:
        script = ScriptedUpstream(lab.internet, "198.19.0.2")
        lab.cleanups.callback(script.stop)
        script.script["www.names.example"] = lambda q: records(f"www.names.example 60 A {DENIED4}")
        lab.serve(udp=[443])
        daemon = lab.daemon(NAMES, names_config(), start=False, wrapper=as_nobody(granted))
        hand_over(daemon)
        daemon.start()
        lab.wait_filtered(daemon)
        assert tcp_exchange(lab.guest, DENIED4, 443) != "ok"
        with lab.guest.inside():
            answer = dns.query.udp(dns.message.make_query("www.names.example.", "A"), "203.0.113.53", timeout=30)
        assert [item.to_text() for rrset in answer.answer for item in rrset] == [DENIED4]
        assert tcp_exchange(lab.guest, DENIED4, 443) == "ok"


def test_the_resolver_names_the_capability_that_it_misses(place):
    daemon = place.daemon(NAMES, names_config(), start=False, wrapper=as_nobody(CAPABILITIES))
    hand_over(daemon)
    daemon.start(wait=False)
    daemon.expect_log("CAP_NET_BIND_SERVICE")


def test_a_failing_setrlimit_is_tolerated(place):
    daemon = place.daemon(start=False, wrapper=["prlimit", "--memlock=65536:65536"] + as_nobody(CAPABILITIES))
    hand_over(daemon)
    daemon.start()
    filters(place, daemon)


def refused(daemon, *words):
    daemon.start(wait=False)
    assert daemon.process.wait(PATIENCE) != 0
    log = daemon.log()
    for word in words:
        assert word in log, log


def configured_with_pins(place, pins):
    daemon = place.daemon(start=False)
    with open(daemon.config_file) as file:
        text = file.read().replace(daemon.pins, pins)
    with open(daemon.config_file, "w") as file:
        file.write(text)
    return daemon


def test_a_bpffs_that_is_not_mounted_is_named(place):
    pins = f"{place.folder}/plain/sluice"
    os.makedirs(os.path.dirname(pins))
    refused(configured_with_pins(place, pins), place.folder + "/plain", "mount -t bpf")


def test_a_read_only_bpffs_is_named(place):
    mount = f"{place.folder}/readonly"
    os.makedirs(mount)
    run("mount", "-t", "bpf", "-o", "ro", "bpf", mount)
    try:
        refused(configured_with_pins(place, mount + "/sluice"), mount, "ead-only")
    finally:
        run("umount", mount)


def test_a_second_start_on_one_state_directory_is_refused(place):
    daemon = place.daemon()
    place.wait_filtered(daemon)
    with place.host.inside():
        second = subprocess.run([find_program("sluiced"), "--config", daemon.config_file], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert second.returncode != 0
    assert daemon.state in second.stdout and str(daemon.process.pid) in second.stdout, second.stdout
    assert daemon.is_running()
    filters(place, daemon)


def test_plugins_that_others_may_change_are_refused(place):
    """Not root's, writable by the group, writable by others, or in a folder that others may change."""
    source = next(f"{folder}/static.so" for folder in plugin_folders() if os.path.exists(f"{folder}/static.so"))
    for label, prepare in (("owner", lambda path: os.chown(path, NOBODY, 0)), ("group", lambda path: os.chmod(path, 0o775)),
                           ("others", lambda path: os.chmod(path, 0o757))):
        folder = f"{place.folder}/plugins-{label}"
        os.makedirs(folder)
        shutil.copy(source, f"{folder}/untrusted.so")
        prepare(f"{folder}/untrusted.so")
        daemon = place.daemon(start=False, config="""
[plugin.x]
library = "untrusted"
policies = []
""")
        with open(daemon.config_file) as file:
            text = re.sub(r"plugin_path = \[", f'plugin_path = ["{folder}", ', file.read())
        with open(daemon.config_file, "w") as file:
            file.write(text)
        code, output = daemon.check()
        assert code != 0 and f"{folder}/untrusted.so" in output, output
        assert re.search("root|owned" if label == "owner" else "writ", output), output


def test_version_and_usage():
    program = find_program("sluiced")
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"\d+\.\d+\.\d+", done.stdout)
    done = subprocess.run([program, "--nonsense"], capture_output=True, text=True)
    assert done.returncode == 2 and "--nonsense" in done.stderr
