"""Bad input: one message that names thing, cause and next step, with file, line and column; what was in force stays in force."""

import os
import re
import signal
import socket

import pytest

from daemon import INTERFACES_CONFIG
from lab import ALLOWED4, ALLOWLIST, DENIED4, PORTED4, Lab
from machine import PATIENCE, eventually, find_program, rounds
from traffic import tcp_exchange, udp_exchange

POLICY_HEAD = '[[policy]]\nname = "p"\nmatch = { class = "vm" }\nmode = "allowlist"\n'

# name, policy file, what the message must say (a regular expression), line of the fault
BAD_POLICIES = [
    ("invalid-cidr", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["10.0.0.300/8"]\n', r"10\.0\.0\.300/8", 6),
    ("prefix-too-long", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["10.0.0.0/33"]\n', r"10\.0\.0\.0/33", 6),
    ("host-bit", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["10.0.0.7/8"]\n', r"10\.0\.0\.7/8.*10\.0\.0\.0/8", 6),
    ("host-bit-6", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["2001:db8::1/32"]\n', r"2001:db8::1/32", 6),
    ("duplicate", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["10.0.0.0/8", "10.0.0.0/8"]\n', r"10\.0\.0\.0/8", 6),
    ("unknown-key", POLICY_HEAD + '[[policy.allow]]\ncidr = ["10.0.0.0/8"]\n', r"cidr.*cidrs", 6),
    ("unknown-key-of-policy", POLICY_HEAD + 'mod = "x"\n', r"mod", 5),
    ("wrong-type", POLICY_HEAD + '[[policy.allow]]\ncidrs = "10.0.0.0/8"\n', r"cidrs", 6),
    ("wrong-mode", '[[policy]]\nname = "p"\nmatch = { class = "vm" }\nmode = "allow"\n', r"allow.*allowlist", 4),
    ("wrong-port", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["10.0.0.0/8"]\nports = ["tcp/70000"]\n', r"tcp/70000", 7),
    ("reversed-ports", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["10.0.0.0/8"]\nports = ["tcp/20-10"]\n', r"tcp/20-10", 7),
    ("wrong-ttl", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["10.0.0.0/8"]\nttl = "soon"\n', r"soon", 7),
    ("mapped", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["::ffff:10.0.0.0/104"]\n', r"::ffff:10\.0\.0\.0", 6),
    ("broken-toml", POLICY_HEAD + '[[policy.allow]]\ncidrs = ["10.0.0.0/8"\n', r"", None),
    ("empty", "", r"", 1),
    ("not-utf8", POLICY_HEAD + '# \udcff\udcfe\n', r"", None),
]

# name, configuration, what the message must say, is the line told
BAD_CONFIGS = [
    ("unknown-table", "[hots]\n", r"hots", True),
    ("unknown-host-key", "[plugin.a]\nlibrary = \"static\"\nplicies = []\n", r"plicies.*policies", True),
    ("wrong-type", '[plugin.taps]\nlibrary = "interfaces"\nmatch = "tap*"\n', r"match", True),
    ("unknown-library", '[plugin.a]\nlibrary = "nonesuch"\n', r"nonesuch", True),
    ("no-library", '[plugin.a]\nmatch = ["a"]\n', r"library", True),
    ("unknown-source", '[[wire]]\ntargets = { discovered_by = "nobody" }\nsources = ["nothing"]\n', r"nothing|nobody", True),
    ("wrong-mode", '[[wire]]\nmode = "open"\n', r"open.*(allowlist|block-all)", True),
    ("floor-host-bit", '[floor]\ndeny = ["10.0.0.1/8"]\n', r"10\.0\.0\.1/8", True),
    ("guard-wrong-type", '[guard]\nuplinks = "eth0"\n', r"uplinks", True),
    ("wrong-log-level", None, r"loud", True),
]


@pytest.fixture(scope="module")
def place():
    """A guest under a good policy; each test puts something bad beside it."""
    with Lab("routed") as lab:
        lab.serve()
        lab.filter = lab.daemon()
        lab.wait_filtered(lab.filter)
        yield lab


def holds(lab):
    assert udp_exchange(lab.guest, ALLOWED4, 9999) == "ok"
    assert udp_exchange(lab.guest, DENIED4, 9999, timeout=0.3, tries=1) != "ok"
    assert lab.filter.is_running(), lab.filter.log()


def write_raw(path, text):
    with open(path, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)


@pytest.mark.parametrize("name,text,says,line", BAD_POLICIES, ids=[b[0] for b in BAD_POLICIES])
def test_a_bad_policy_is_refused_by_check_with_its_place(place, name, text, says, line):
    daemon = place.daemon(policy={}, start=False)
    path = f"{daemon.policy_folder}/bad.toml"
    write_raw(path, text)
    code, output = daemon.check()
    assert code != 0, output
    assert re.search(says, output, re.DOTALL), output
    assert re.search(r"bad\.toml:" + (rf"{line}:\d+: " if line else r"\d+:\d+: "), output), output


@pytest.mark.parametrize("name,text,says,line", BAD_POLICIES, ids=[b[0] for b in BAD_POLICIES])
def test_a_bad_policy_beside_a_running_daemon_changes_nothing(place, name, text, says, line):
    file = f"bad-{name}.toml"  # its own, so that a late word about another is not taken for this one's
    path = f"{place.filter.policy_folder}/{file}"
    try:
        write_raw(path, text)
        place.filter.reload()
        place.filter.expect_log(re.escape(file) + (rf":{line}:\d+: " if line else r":\d+:\d+: "))
        assert re.search(re.escape(file) + f"[^\n]*(?:{says})", place.filter.log()), place.filter.log()
        holds(place)
    finally:
        os.unlink(path)


@pytest.mark.parametrize("name,text,says,has_line", BAD_CONFIGS, ids=[b[0] for b in BAD_CONFIGS])
def test_a_bad_configuration_is_refused(place, name, text, says, has_line):
    daemon = place.daemon(start=False, config=text or "", extra_host="" if text else 'log_level = "loud"\n')
    if text is None:
        with open(daemon.config_file) as file:
            content = file.read().replace('log_level   = "debug"\n', "")
        write_raw(daemon.config_file, content)
    code, output = daemon.check()
    assert code != 0, output
    assert re.search(says, output, re.DOTALL), output
    if has_line:
        assert re.search(r"sluice\.toml:\d+:(\d+:)? ", output), output
    daemon.start(wait=False)
    assert daemon.process.wait(PATIENCE) != 0
    assert re.search(says, daemon.log(), re.DOTALL), daemon.log()


def test_every_error_is_told_at_once(place):
    daemon = place.daemon(start=False, config='[plugin.a]\nlibrary = "static"\nplicies = []\n[floor]\ndeny = ["10.0.0.1/8"]\n'
                          '[[wire]]\nmode = "open"\n')
    code, output = daemon.check()
    assert code != 0
    for word in ("plicies", "10.0.0.1/8", "open"):
        assert word in output, output


def test_every_error_of_the_policy_files_is_told_at_once(place):
    daemon = place.daemon(start=False, policy={
        "bad.toml": POLICY_HEAD + '[[policy.allow]]\ncidrs = ["1/8", "10.0.0.7/8"]\n',
        "worse.toml": POLICY_HEAD + '[[policy.deny]]\ncidrs = ["192.0.2.1/24"]\nprots = []\n'})
    code, output = daemon.check()
    assert code != 0
    for word in ('"1/8"', "10.0.0.7/8", "192.0.2.1/24", "prots"):
        assert word in output, output


def test_a_bad_configuration_on_reload_changes_nothing(place):
    daemon = place.filter
    with open(daemon.config_file) as file:
        good = file.read()
    for text in (good + '\n[hots]\n', good.replace('"block-all"', '"open"'), "", "\0garbage"):
        mark = len(daemon.log())
        write_raw(daemon.config_file, text)
        daemon.reload()
        eventually(lambda: "sluice.toml" in daemon.log()[mark:], "a message that names the file")
        holds(place)
    write_raw(daemon.config_file, good)
    daemon.reload()
    holds(place)


def test_an_empty_policy_file_is_named(place):
    """Half-written, most likely: whoever wants no policy removes the file."""
    daemon = place.daemon(policy={"empty.toml": ""}, start=False)
    code, output = daemon.check()
    assert code != 0 and "empty.toml:1:1: " in output, output


def test_an_empty_configuration_is_refused(place):
    """A daemon that filters nothing would be taken for one that filters."""
    path = f"{place.folder}/empty.toml"
    write_raw(path, "")
    code, output = place.daemon(start=False).check(path)
    assert code != 0 and "empty.toml" in output, output


def test_ten_megabytes_of_garbage(place):
    garbage = os.urandom(10 << 20)
    daemon = place.daemon(policy={}, start=False)
    write_raw(f"{daemon.policy_folder}/bad.toml", garbage)
    code, output = daemon.check()
    assert code != 0 and "bad.toml" in output
    assert len(output) < 100_000, "the garbage is not printed back"
    write_raw(f"{place.folder}/garbage.toml", garbage)
    code, output = daemon.check(f"{place.folder}/garbage.toml")
    assert code != 0 and "garbage.toml" in output and len(output) < 100_000
    path = f"{place.filter.policy_folder}/bad.toml"
    mark = len(place.filter.log())
    try:
        write_raw(path, garbage)
        eventually(lambda: "bad.toml" in place.filter.log()[mark:], "a message that names the file")
        holds(place)
    finally:
        os.unlink(path)


def test_a_missing_configuration_is_named(place):
    daemon = place.daemon(start=False)
    code, output = daemon.check(f"{place.folder}/nonesuch.toml")
    assert code != 0 and "nonesuch.toml" in output and re.search("does not exist|No such file", output), output


def test_a_good_configuration_passes_the_check_and_changes_nothing(place):
    daemon = place.daemon(start=False)
    code, output = daemon.check()
    assert code == 0, output
    assert not os.path.exists(daemon.pins), "--check touches nothing"
    holds(place)


def test_policy_follows_its_file(place):
    """Written: in force without a signal. Removed again: as before."""
    extra = POLICY_HEAD.replace('"p"', '"more"') + f'[[policy.allow]]\ncidrs = ["{DENIED4}/32"]\n'
    place.filter.write_policy("more.toml", extra)
    eventually(lambda: udp_exchange(place.guest, DENIED4, 9999, timeout=0.2, tries=1) == "ok", "the new policy")
    os.unlink(f"{place.filter.policy_folder}/more.toml")
    eventually(lambda: udp_exchange(place.guest, DENIED4, 9999, timeout=0.2, tries=1) != "ok", "the old policy again")
    holds(place)


def test_an_interface_that_disappears_during_attach(place):
    """Links come and go as fast as the kernel makes them; the daemon goes on and the standing one stays filtered."""
    for _ in range(rounds(200, 40)):
        place.host.batch("link add hgone type veth peer name hpeer\nlink delete hgone")
    holds(place)
    eventually(lambda: len(place.filter.slots()) == 1, "only the standing link has an attachment")


def test_a_full_table_of_attachments_is_named_once_and_the_others_stay_filtered():
    """The link beyond the table takes the place of the first that goes, without anybody's help."""
    with Lab("routed") as lab:
        lab.serve()
        daemon = lab.daemon(max_attachments=2)
        second = lab.add_guest(2)
        lab.wait_filtered(daemon)
        lab.wait_filtered(daemon, "h2")
        lab.add_guest(3)
        daemon.expect_log(r"h3\b.*all 2 attachments are in use; raise host\.max_attachments")
        for guest in (lab.guest, second):
            assert udp_exchange(guest, ALLOWED4, 9999) == "ok"
            assert udp_exchange(guest, DENIED4, 9999, timeout=0.3, tries=1) != "ok"
        lab.host.ip("link", "delete", "h2")
        lab.wait_filtered(daemon, "h3")
        assert daemon.log().count("raise host.max_attachments") == 1, "tried again in silence"


def test_a_policy_beyond_the_kernel_s_bounds_is_named_and_the_one_in_force_stays(place):
    """More port ranges for one prefix than a packet's walk may take; the file itself is without fault."""
    mark = len(place.filter.log())
    ports = ",\n".join(f'"tcp/{2 * number + 1}"' for number in range(1000))
    more = ALLOWLIST.replace('ports = ["tcp/443", "udp/8000-8100"]', f"ports = [{ports}]")
    try:
        place.filter.write_policy("lab.toml", more)
        eventually(lambda: "port or expiry decisions would apply to 192.0.2.0/24" in place.filter.log()[mark:], "the prefix and the cause")
        assert "join its port ranges" in place.filter.log()[mark:]
        assert tcp_exchange(place.guest, PORTED4, 443) == "ok", "what was in force"
        holds(place)
    finally:
        place.filter.write_policy("lab.toml", ALLOWLIST)
    holds(place)


def test_a_service_manager_that_does_not_listen_stops_nothing(place):
    """Its socket's queue fills after some messages; the daemon goes on without telling."""
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with deaf:
        deaf.bind(f"{place.folder}/deaf")
        daemon = place.daemon(start=False, config=INTERFACES_CONFIG.replace("h*", "nothing*"))
        words = [find_program("sluiced"), "--config", daemon.config_file]
        process = None
        try:
            log = open(daemon.log_file, "wb")
            process = place.host.popen(words, stdout=log, stderr=log, env=dict(os.environ, NOTIFY_SOCKET=f"{place.folder}/deaf"))
            log.close()
            daemon.log_start = 0
            daemon.expect_log(r"\bready\b")
            for number in range(1, 31):
                process.send_signal(signal.SIGHUP)
                eventually(lambda: daemon.log().count("reloaded:") >= number, f"reload {number}")
        finally:
            if process:
                process.kill()
                process.wait()


def test_names_that_nobody_resolves_are_said_to_open_nothing(place):
    """Once for a wire, not for each workload or each change."""
    mark = len(place.filter.log())
    names = ALLOWLIST + '[[policy.allow]]\ndomains = ["www.names.example"]\n'
    try:
        place.filter.write_policy("lab.toml", names)
        eventually(lambda: "names no resolver, so they open nothing" in place.filter.log()[mark:], "the warning")
        assert "www.names.example" in place.filter.log()[mark:]
        place.filter.write_policy("lab.toml", names.replace("www", "ftp"))
        holds(place)
        assert place.filter.log()[mark:].count("names no resolver") == 1
    finally:
        place.filter.write_policy("lab.toml", ALLOWLIST)
    holds(place)
