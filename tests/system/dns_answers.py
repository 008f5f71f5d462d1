"""What an answer opens, and what it does not: each case is a name, what an upstream says of it, and the addresses that the kernel
then holds for the workload that asked. The upstream is scripted, so it may lie in every way there is.
"""

import contextlib
import ipaddress
import os
import socket
import struct
import time

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
from daemon import names_config
from lab import GUEST4, PORTED4, PORTED6, Lab
from machine import PATIENCE, eventually
from scripted_upstream import ScriptedUpstream, records, reply
from traffic import family_of, tcp_exchange

SERVER = "203.0.113.53"  # nothing is there
POLICY = """
[[policy]]
name  = "names"
match = { class = "vm" }
mode  = "allowlist"
[[policy.allow]]
name    = "zone"
domains = [".names.example"]
[[policy.allow]]
name      = "inside"
domains   = ["inside.example"]
addresses = ["10.20.0.0/16"]
[[policy.deny]]
domains = ["denied.names.example", "*.bad.example"]
[[policy.deny]]
cidrs = ["198.51.100.99/32", "2001:db8:a::99/128"]
"""
A, AAAA, HTTPS = "A", "AAAA", "HTTPS"


def ask(lab, name, kind=A, transport="tcp", guest=None):
    """The response as the guest gets it; None: there is none."""
    query = dns.message.make_query(name + ".", kind, use_edns=0)
    with (guest or lab.guest).inside():
        try:
            return (dns.query.tcp if transport == "tcp" else dns.query.udp)(query, SERVER, timeout=30)
        except (dns.exception.Timeout, EOFError, OSError):
            return None


def addresses_in(response):
    return {str(item.address) for rrset in (response.answer if response else []) for item in rrset
            if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)}


@pytest.fixture(scope="module")
def lab():
    with Lab("routed") as lab:
        lab.script = ScriptedUpstream(lab.internet, "198.19.0.2")
        lab.cleanups.callback(lab.script.stop)
        lab.tamed = lab.daemon(POLICY, names_config())
        lab.wait_filtered(lab.tamed)
        lab.serve(udp=[443])
        yield lab
        assert not lab.script.faults, lab.script.faults


def opened(lab, daemon=None):
    return set((daemon or lab.tamed).learned(lab.host.ifindex("h1")))


def many(kind, count):
    base = ipaddress.ip_address("2001:db8:a:1::" if kind == AAAA else "198.51.100.0")
    return records(*(f"many.names.example 60 {kind} {base + number}" for number in range(1, count + 1)))


def whole(query, **sections):
    return reply(query, **{where: records(*lines) if isinstance(lines, (list, tuple)) else lines for where, lines in sections.items()})


def with_id(query, message, change):
    wire = bytearray(message.to_wire())
    struct.pack_into("!H", wire, 0, (query.id + change) & 0xFFFF)
    return bytes(wire)


def other_question(query):
    other = dns.message.make_query("other.names.example.", "A")
    other.id = query.id
    return reply(other, answer=records("other.names.example 60 A 198.51.100.66"))


def loop_of_pointers(query):
    wire = whole(query, answer=["loop.names.example 60 A 198.51.100.70"]).to_wire()
    return wire[:12 + len(query.question[0].name.to_wire()) + 4] + b"\xc0" + bytes([12 + len(query.question[0].name.to_wire()) + 4]) + wire[-14:]


# name, type, what the upstream says, addresses that open, response code (None: any)
CASES = [
    ("an address", "one.names.example", A, lambda q: whole(q, answer=["one.names.example 60 A 198.51.100.1"]), {"198.51.100.1"}, 0),
    ("an IPv6 address", "one6.names.example", AAAA, lambda q: whole(q, answer=["one6.names.example 60 AAAA 2001:db8:a::1"]),
     {"2001:db8:a::1"}, 0),
    ("a chain of CNAMEs", "chain.names.example", A, lambda q: whole(q, answer=[
        "chain.names.example 60 CNAME a.cdn.example", "a.cdn.example 60 CNAME b.cdn.example", "b.cdn.example 60 A 198.51.100.2"]),
     {"198.51.100.2"}, 0),
    ("the same in another order", "order.names.example", A, lambda q: whole(q, answer=[
        "b.cdn.example 60 A 198.51.100.3", "a.cdn.example 60 CNAME b.cdn.example", "order.names.example 60 CNAME a.cdn.example"]),
     {"198.51.100.3"}, 0),
    ("a DNAME with its CNAME", "x.tree.names.example", A, lambda q: whole(q, answer=[
        "tree.names.example 60 DNAME wood.example", "x.tree.names.example 60 CNAME x.wood.example", "x.wood.example 60 A 198.51.100.4"]),
     {"198.51.100.4"}, 0),
    ("a DNAME alone", "y.tree.names.example", A, lambda q: whole(q, answer=[
        "tree.names.example 60 DNAME wood.example", "y.wood.example 60 A 198.51.100.5"]), {"198.51.100.5"}, 0),
    ("a CNAME that contradicts its DNAME", "z.tree.names.example", A, lambda q: whole(q, answer=[
        "tree.names.example 60 DNAME wood.example", "z.tree.names.example 60 CNAME z.elsewhere.example",
        "z.elsewhere.example 60 A 198.51.100.6"]), set(), 2),
    ("a chain through a denied name", "via.names.example", A, lambda q: whole(q, answer=[
        "via.names.example 60 CNAME x.bad.example", "x.bad.example 60 A 198.51.100.7"]), set(), 3),
    ("a chain that ends at a denied name", "to.names.example", A, lambda q: whole(q, answer=[
        "to.names.example 60 CNAME denied.names.example", "denied.names.example 60 A 198.51.100.8"]), set(), 3),
    ("a circle", "round.names.example", A, lambda q: whole(q, answer=[
        "round.names.example 60 CNAME back.names.example", "back.names.example 60 CNAME round.names.example",
        "round.names.example 60 A 198.51.100.9"]), set(), 2),
    ("two CNAMEs at one name", "fork.names.example", A, lambda q: whole(q, answer=[
        "fork.names.example 60 CNAME a.cdn.example", "fork.names.example 60 CNAME b.cdn.example", "a.cdn.example 60 A 198.51.100.11",
        "b.cdn.example 60 A 198.51.100.12"]), set(), 2),
    ("an address of another name", "mine.names.example", A, lambda q: whole(q, answer=[
        "mine.names.example 60 A 198.51.100.13", "yours.names.example 60 A 198.51.100.14"]), {"198.51.100.13"}, 0),
    ("only an address of another name", "none.names.example", A, lambda q: whole(q, answer=["yours.names.example 60 A 198.51.100.15"]),
     set(), None),
    ("an address in the additional section", "added.names.example", A, lambda q: whole(q, additional=[
        "added.names.example 60 A 198.51.100.16"]), set(), 0),
    ("an address in the authority section", "ruled.names.example", A, lambda q: whole(q, authority=[
        "ruled.names.example 60 A 198.51.100.17"]), set(), 0),
    ("an error with an address", "failed.names.example", A, lambda q: reply(q, answer=records("failed.names.example 60 A 198.51.100.18"),
                                                                         rcode=dns.rcode.SERVFAIL), set(), 2),
    ("no such name, with an address", "nosuch.names.example", A, lambda q: reply(q, answer=records("nosuch.names.example 60 A 198.51.100.19"),
                                                                             rcode=dns.rcode.NXDOMAIN), set(), None),
    ("TTL 0", "zero.names.example", A, lambda q: whole(q, answer=["zero.names.example 0 A 198.51.100.20"]), {"198.51.100.20"}, 0),
    ("a TTL of 2^31", "ages.names.example", A, lambda q: whole(q, answer=["ages.names.example 2147483648 A 198.51.100.21"]),
     {"198.51.100.21"}, 0),
    ("200 addresses", "many.names.example", A, lambda q: reply(q, answer=many(A, 98)),
     {f"198.51.100.{number}" for number in range(1, 99)}, 0),
    ("1,000 addresses", "many.names.example", AAAA, lambda q: reply(q, answer=many(AAAA, 1000)),
     {str(ipaddress.ip_address("2001:db8:a:1::") + number) for number in range(1, 1001)}, 0),
    ("a private address", "priv.names.example", A, lambda q: whole(q, answer=["priv.names.example 60 A 10.20.0.7"]), set(), None),
    ("one of each", "mixed.names.example", A, lambda q: whole(q, answer=[
        "mixed.names.example 60 A 192.168.1.1", "mixed.names.example 60 A 198.51.100.22", "mixed.names.example 60 A 127.0.0.1"]),
     {"198.51.100.22"}, 0),
    ("the metadata service", "meta.names.example", A, lambda q: whole(q, answer=["meta.names.example 60 A 169.254.169.254"]), set(), None),
    ("the host's own address", "host.names.example", A, lambda q: whole(q, answer=["host.names.example 60 A 198.19.0.1"]), set(), None),
    ("loopback", "loop.names.example", A, lambda q: whole(q, answer=["loop.names.example 60 A 127.0.0.1"]), set(), None),
    ("carrier addresses", "cgn.names.example", A, lambda q: whole(q, answer=["cgn.names.example 60 A 100.64.0.1"]), set(), None),
    ("multicast", "cast.names.example", A, lambda q: whole(q, answer=["cast.names.example 60 A 239.1.1.1"]), set(), None),
    ("a mapped address", "mapped.names.example", AAAA, lambda q: whole(q, answer=["mapped.names.example 60 AAAA ::ffff:198.51.100.23"]),
     set(), None),
    ("NAT64", "nat64.names.example", AAAA, lambda q: whole(q, answer=["nat64.names.example 60 AAAA 64:ff9b::a14:7"]), set(), None),
    ("a unique local address", "ula.names.example", AAAA, lambda q: whole(q, answer=["ula.names.example 60 AAAA fd00::1"]), set(), None),
    ("link-local", "link.names.example", AAAA, lambda q: whole(q, answer=["link.names.example 60 AAAA fe80::1"]), set(), None),
    ("a private address that the rule names", "inside.example", A, lambda q: whole(q, answer=["inside.example 60 A 10.20.0.8"]),
     {"10.20.0.8"}, 0),
    ("another private address under that rule", "inside.example", AAAA, lambda q: whole(q, answer=["inside.example 60 AAAA fd00::8"]),
     set(), None),
    ("an address that a rule denies", "hole.names.example", A, lambda q: whole(q, answer=[
        "hole.names.example 60 A 198.51.100.99", "hole.names.example 60 A 198.51.100.24"]), {"198.51.100.24"}, 0),
    ("hints", "web.names.example", HTTPS, lambda q: whole(q, answer=[
        "web.names.example 60 HTTPS 1 . alpn=h2 ipv4hint=198.51.100.25 ipv6hint=2001:db8:a::25"]),
     {"198.51.100.25", "2001:db8:a::25"}, 0),
    ("a private hint", "webpriv.names.example", HTTPS, lambda q: whole(q, answer=[
        "webpriv.names.example 60 HTTPS 1 . alpn=h2 ipv4hint=10.20.0.9"]), set(), 0),
    ("a wrong id first", "id.names.example", A, lambda q: [
        with_id(q, whole(q, answer=["id.names.example 60 A 198.51.100.66"]), 1), whole(q, answer=["id.names.example 60 A 198.51.100.26"])],
     {"198.51.100.26"}, 0),
    ("an answer to another question first", "question.names.example", A, lambda q: [
        other_question(q), whole(q, answer=["question.names.example 60 A 198.51.100.27"])], {"198.51.100.27"}, 0),
    ("noise first", "noise.names.example", A, lambda q: [b"\0", b"", bytes(12), whole(q, answer=["noise.names.example 60 A 198.51.100.28"])],
     {"198.51.100.28"}, 0),
    ("an owner that points at itself", "loop.names.example", AAAA, loop_of_pointers, set(), 2),
    ("silence", "silent.names.example", A, lambda q: None, set(), 2),
    ("a denied name", "denied.names.example", A, lambda q: whole(q, answer=["denied.names.example 60 A 198.51.100.67"]), set(), 3),
    ("a name below a denied one is the zone's", "sub.denied.names.example", A, lambda q: whole(q, answer=[
        "sub.denied.names.example 60 A 198.51.100.29"]), {"198.51.100.29"}, 0),
    ("a name that nothing allows", "elsewhere.example", A, lambda q: whole(q, answer=["elsewhere.example 60 A 198.51.100.68"]), set(), 3),
]


@pytest.mark.parametrize("what, name, kind, says, expected, rcode", CASES, ids=[case[0] for case in CASES])
def test_what_an_answer_opens(lab, what, name, kind, says, expected, rcode):
    before = opened(lab)
    lab.script.script[name] = says
    asked = len(lab.script.asked)
    response = ask(lab, name, kind)
    new = opened(lab) - before
    # A case may repeat an address of one before: what it names must be there, what is new must be named.
    assert new <= expected, f"{what}: opened {new - expected} too"
    assert expected <= opened(lab), f"{what}: {expected - opened(lab)} is not open"
    assert response is not None, what
    if rcode is not None:
        assert response.rcode() == rcode, f"{what}:\n{response}"
    if kind != HTTPS:
        assert addresses_in(response) == expected, f"{what}: the guest was told of what it cannot reach, or not of what it can"
    if name in ("denied.names.example", "elsewhere.example"):
        assert len(lab.script.asked) == asked, "a refused name was asked upstream"


def test_a_big_answer_comes_by_tcp(lab):
    lab.script.script["wide.names.example"] = lambda q: reply(q, answer=[
        *records(*(f"wide.names.example 60 A 198.51.100.{number}" for number in range(100, 200)))])
    short = ask(lab, "wide.names.example", transport="udp")
    assert short.flags & dns.flags.TC and not addresses_in(short)
    assert len(addresses_in(ask(lab, "wide.names.example"))) == 100
    assert ("wide.names.example", "A", "tcp") in lab.script.asked, "a truncated answer was not asked for again by TCP"


def test_rebinding_opens_nothing_inside(lab):
    seen = []
    for address in ("198.51.100.41", "10.20.0.41", "127.0.0.1"):
        lab.script.script["rebind.names.example"] = lambda q, address=address: records(f"rebind.names.example 0 A {address}")
        seen.append(addresses_in(ask(lab, "rebind.names.example")))
        time.sleep(1.1)
    assert seen == [{"198.51.100.41"}, set(), set()]
    assert not {"10.20.0.41", "127.0.0.1"} & opened(lab)


def test_a_grant_is_the_askers_alone(lab):
    """A sibling cannot use what another resolved: not the address, not by asking with the other's address, not over its connection."""
    sibling = lab.add_guest(2)
    lab.wait_filtered(lab.tamed, "h2")
    lab.script.script["shared.names.example"] = lambda q: records("shared.names.example 60 A 198.51.100.210")
    assert addresses_in(ask(lab, "shared.names.example")) == {"198.51.100.210"}
    assert tcp_exchange(lab.guest, "198.51.100.210", 443) == "ok"
    assert tcp_exchange(sibling, "198.51.100.210", 443) != "ok"
    # The sibling asks as if it were the first guest: it is still the sibling that is answered for.
    sibling.ip("addr", "add", f"{GUEST4}/32", "dev", "lo")
    lab.script.script["forged.names.example"] = lambda q: records("forged.names.example 60 A 198.51.100.211")
    query = dns.message.make_query("forged.names.example.", "A").to_wire()
    with sibling.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((GUEST4, 0))
        client.sendto(query, (SERVER, 53))
        eventually(lambda: "forged.names.example" in lab.script.names_asked(), "the forged question upstream")
        time.sleep(0.2)
    assert "198.51.100.211" not in opened(lab), "a forged question opened an address for the neighbour"


def test_removing_a_rule_closes_what_it_opened(lab):
    daemon = lab.tamed
    both = POLICY + '[[policy.allow]]\nname = "extra"\ndomains = ["extra.example"]\n[[policy.allow]]\nname = "twin"\ndomains = ["twin.example"]\n'
    daemon.write_policy("lab.toml", both)
    lab.script.script["extra.example"] = lambda q: records("extra.example 600 A 198.51.100.220", "extra.example 600 A 198.51.100.221")
    lab.script.script["twin.example"] = lambda q: records("twin.example 600 A 198.51.100.221")
    eventually(lambda: addresses_in(ask(lab, "extra.example")), "the new rule's name")
    eventually(lambda: addresses_in(ask(lab, "twin.example")), "the other name")
    assert tcp_exchange(lab.guest, "198.51.100.220", 443) == "ok"
    daemon.write_policy("lab.toml", both.replace('"extra.example"', '"changed.example"'))
    eventually(lambda: "198.51.100.220" not in opened(lab), "the address closed")
    assert tcp_exchange(lab.guest, "198.51.100.220", 443) != "ok"
    assert "198.51.100.221" in opened(lab) and tcp_exchange(lab.guest, "198.51.100.221", 443) == "ok", "the twin's address went too"
    response = ask(lab, "extra.example")
    assert response.rcode() == dns.rcode.NXDOMAIN


def test_a_name_that_is_denied_under_a_wildcard_closes_what_it_had_opened():
    """New rules beside an unchanged wildcard: a deny of one name, of an alias, and a more specific rule with other ports. What only these
    names had opened closes at once, their connections included; a sibling's addresses and its connection stay, and so does an address
    that both had opened. Then again while no daemon runs."""
    policy = POLICY.replace('"denied.names.example", "*.bad.example"', '"denied.names.example"')
    names = {"gone": 150, "alias": 151, "ported": 152, "stays": 153, "later": 154}
    both = {A: "198.51.100.159", AAAA: "2001:db8:a::159"}

    def address(name, kind):
        return f"198.51.100.{names[name]}" if kind == A else f"2001:db8:a::{names[name]}"

    def answer(query, name):
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        if name == "alias":
            return records(f"alias.names.example 3600 CNAME edge.bad.example", f"edge.bad.example 3600 {kind} {address(name, kind)}")
        own = [f"{name}.names.example 3600 {kind} {address(name, kind)}"]
        return records(*own, *([f"{name}.names.example 3600 {kind} {both[kind]}"] if name in ("gone", "stays") else []))

    with Lab("routed") as lab, contextlib.ExitStack() as stack:
        script = ScriptedUpstream(lab.internet, "198.19.0.2")
        lab.cleanups.callback(script.stop)
        lab.serve(udp=[443])
        for name in names:
            script.script[f"{name}.names.example"] = lambda q, name=name: answer(q, name)
        daemon = lab.daemon(policy, names_config())
        lab.wait_filtered(daemon)
        live = {}
        for kind in (A, AAAA):
            for name in names:
                assert address(name, kind) in addresses_in(ask(lab, f"{name}.names.example", kind))
                target = address(name, kind)
                live[name, kind] = stack.enter_context(lab.guest.socket(family_of(target), socket.SOCK_STREAM))
                live[name, kind].settimeout(30)
                live[name, kind].connect((target, 443))

        def talks(name, kind, patience=30):
            live[name, kind].settimeout(patience)
            try:
                live[name, kind].sendall(b"still here")
                return live[name, kind].recv(10) == b"still here"
            except OSError:
                return False

        assert all(talks(*which) for which in live)
        changed = policy.replace('"denied.names.example"', '"denied.names.example", "gone.names.example", "*.bad.example"')
        changed += '[[policy.allow]]\ndomains = ["ported.names.example"]\nports = ["tcp/25"]\n'
        daemon.write_policy("lab.toml", changed)
        eventually(lambda: address("gone", A) not in opened(lab, daemon), "the denied name's address closed")
        for kind in (A, AAAA):
            for name in ("gone", "alias", "ported"):
                assert tcp_exchange(lab.guest, address(name, kind), 443) != "ok", f"{name} is still open"
                assert not talks(name, kind, patience=1), f"a connection to {name} lives on"
            for name in ("stays", "later"):
                assert talks(name, kind), f"a connection to {name} was cut"
                assert tcp_exchange(lab.guest, address(name, kind), 443) == "ok"
            assert tcp_exchange(lab.guest, both[kind], 443) == "ok", "what an allowed name had opened too is closed"
            assert ask(lab, "gone.names.example", kind).rcode() == dns.rcode.NXDOMAIN
        # While no daemon runs: whose addresses they are is known by the wildcard only, and all of its are closed.
        daemon.kill()
        daemon.write_policy("lab.toml", changed.replace('"gone.names.example"', '"gone.names.example", "later.names.example"'))
        daemon.start()
        eventually(lambda: address("later", A) not in opened(lab, daemon), "the address of the name that was denied meanwhile, closed")
        for kind in (A, AAAA):
            assert tcp_exchange(lab.guest, address("later", kind), 443) != "ok"
            assert not talks("later", kind, patience=1)
            assert address("stays", kind) in addresses_in(ask(lab, "stays.names.example", kind))
            assert tcp_exchange(lab.guest, address("stays", kind), 443) == "ok", "the sibling does not come back with its next answer"
        assert not script.faults


def test_a_workload_at_its_share_of_addresses_takes_nothing_from_another():
    with Lab("routed") as lab:
        script = ScriptedUpstream(lab.internet, "198.19.0.2")
        lab.cleanups.callback(script.stop)
        lab.serve(udp=[443])
        sibling = lab.add_guest(2)
        daemon = lab.daemon(POLICY, names_config(), extra_host="max_learned_per_workload = 16\n")
        lab.wait_filtered(daemon)
        lab.wait_filtered(daemon, "h2")
        for number in range(1, 31):
            script.script[f"n{number}.names.example"] = lambda q, number=number: records(
                f"n{number}.names.example 600 A 198.51.100.{100 + number}")
        got = [number for number in range(1, 31) if addresses_in(ask(lab, f"n{number}.names.example"))]
        assert got == list(range(1, 17)), "the share is 16"
        assert ask(lab, "n20.names.example").rcode() == dns.rcode.SERVFAIL
        assert tcp_exchange(lab.guest, "198.51.100.116", 443) == "ok"
        assert tcp_exchange(lab.guest, "198.51.100.117", 443) != "ok"
        assert addresses_in(ask(lab, "n20.names.example", guest=sibling)) == {"198.51.100.120"}
        assert tcp_exchange(sibling, "198.51.100.120", 443) == "ok"
        assert daemon.log().count("max_learned_per_workload") == 1, "said once"


def test_a_reload_touches_the_rules_that_changed_and_no_others():
    """SIGHUP, with another folder of policies and another option of the resolver: what both folders name stays open, live connections
    and resolved addresses alike; what only the old one named closes; what only the new one names opens."""
    def policy(*names):
        return (POLICY[:POLICY.index("[[policy.allow]]")] + '[[policy.allow]]\ncidrs = ["192.0.2.0/24", "2001:db8:c::/48"]\n' +
                "".join(f'[[policy.allow]]\nname = "{name}"\ndomains = ["{name}.example"]\n' for name in names))

    with Lab("routed") as lab:
        script = ScriptedUpstream(lab.internet, "198.19.0.2")
        lab.cleanups.callback(script.stop)
        addresses = {}
        for number, name in enumerate(("stays", "goes", "comes"), 80):
            addresses[name] = {A: f"198.51.100.{number}", AAAA: f"2001:db8:a::{number}"}
            script.script[f"{name}.example"] = lambda q, name=name: records(*(
                f"{name}.example 3600 {kind} {address}" for kind, address in addresses[name].items()
                if dns.rdatatype.from_text(kind) == q.question[0].rdtype))
        lab.serve(udp=[443])
        daemon = lab.daemon(policy("stays", "goes"), names_config())
        lab.wait_filtered(daemon)
        for kind in (A, AAAA):
            for name in ("stays", "goes"):
                assert addresses_in(ask(lab, f"{name}.example", kind)) == {addresses[name][kind]}
                assert tcp_exchange(lab.guest, addresses[name][kind], 443) == "ok"
        with contextlib.ExitStack() as stack:
            live = [stack.enter_context(lab.guest.socket(family_of(address), socket.SOCK_STREAM)) for address in addresses["stays"].values()]
            for connection, address in zip(live, addresses["stays"].values()):
                connection.settimeout(5)
                connection.connect((address, 443))
            os.makedirs(f"{daemon.folder}/other.d")
            with open(f"{daemon.folder}/other.d/lab.toml", "w") as file:
                file.write(policy("stays", "comes"))
            daemon.write_config(names_config(options='denied = "refused"').replace("{policies}", "{folder}/other.d/*.toml"))
            assert ask(lab, "comes.example").rcode() == dns.rcode.NXDOMAIN, "in force before it was asked for"
            daemon.reload()
            eventually(lambda: addresses_in(ask(lab, "comes.example")), "the new rule's name")
            eventually(lambda: addresses["goes"][A] not in opened(lab, daemon), "the old rule's addresses closed")
            for connection in live:
                connection.sendall(b"still here")
                assert connection.recv(10) == b"still here", "a live connection under a rule that stayed was cut"
        for kind in (A, AAAA):
            assert tcp_exchange(lab.guest, addresses["stays"][kind], 443) == "ok", "what was resolved under a rule that stayed is closed"
            assert tcp_exchange(lab.guest, addresses["goes"][kind], 443) != "ok"
            assert ask(lab, "goes.example", kind).rcode() == dns.rcode.REFUSED
            assert addresses_in(ask(lab, "comes.example", kind)) == {addresses["comes"][kind]}
            assert tcp_exchange(lab.guest, addresses["comes"][kind], 443) == "ok"
        assert [tcp_exchange(lab.guest, address, 443) for address in (PORTED4, PORTED6)] == ["ok", "ok"], "an unchanged CIDR rule"
        assert script.names_asked().count("stays.example") == 2, "it was asked for again"
        assert not script.faults


def test_an_address_ends_with_its_answer_and_a_live_connection_goes_on():
    """With short times: an answer stands for TTL (or floor) and grace, a live connection for `live_flows` more; the kernel ends both,
    with no daemon running. Where a step came later than its time allows nothing is shown: then with longer times."""
    assert any(address_ends_with_its_answer(unit) for unit in (1, 5, 25)), "a connection before the end of the answer, and on behind it"


def address_ends_with_its_answer(unit):
    times = names_config(options=f'floor = "{2 * unit}s"\ngrace = "{unit}s"\nlive_flows = "{6 * unit}s"')
    with Lab("routed") as lab:
        script = ScriptedUpstream(lab.internet, "198.19.0.2")
        lab.cleanups.callback(script.stop)
        daemon = lab.daemon(POLICY, times)
        lab.wait_filtered(daemon)
        lab.serve(udp=[443])
        script.script["brief.names.example"] = lambda q: records("brief.names.example 1 A 198.51.100.70")
        asked = time.monotonic()
        assert addresses_in(ask(lab, "brief.names.example")) == {"198.51.100.70"}
        live = lab.guest.socket(socket.AF_INET, socket.SOCK_STREAM)

        def talks():
            try:
                live.sendall(b"still here")
                return live.recv(10) == b"still here"
            except OSError:
                return False

        with live:
            live.settimeout(5)
            is_live = live.connect_ex(("198.51.100.70", 443)) == 0
            daemon.kill()
            if not (is_live and talks()):
                assert time.monotonic() - asked > 2.5 * unit, "what an answer has opened is not open"
                return False
            eventually(lambda: tcp_exchange(lab.guest, "198.51.100.70", 443) != "ok", "the end of the answer")
            assert time.monotonic() - asked > 2.9 * unit, "it ended before its time"
            if not talks():
                assert time.monotonic() - asked > 8.5 * unit, "a live connection was cut with its answer"
                return False
            eventually(lambda: not talks(), "the end of the live connection", pause=0.3, patience=PATIENCE + 9 * unit)
            assert time.monotonic() - asked > 8.5 * unit, "it was cut before its time"
            return True
