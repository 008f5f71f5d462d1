"""The first connection after a cold answer never fails: the address is in the kernel before a byte of the answer leaves.

Names and addresses are all different, each is asked for once, over UDP and TCP, IPv4 and IPv6, and connected to at once. Beside it,
with the same upstream and the same guest: dnsmasq filling an nftables set (--nftset), whose count is printed, not judged.
"""

import subprocess

import pytest
from daemon import UNLIMITED, UNLIMITED_HOST, names_config
from lab import Lab
from machine import find_program, rounds
from name_servers import Dnsmasq, Nsd, nft, numbered_zone

ROUNDS = rounds(100_000, 4_000)  # over all four ways together
PEER_ROUNDS = rounds(12_000, 1_000)  # UDP only: it forks for each TCP client, which is another story
ZONE = "first.example"
NETWORKS = {"A": ["198.18.128.0/17", "198.19.64.0/18", "198.19.128.0/17"], "AAAA": ["2001:db8:f::/48"]}

POLICY = f"""
[[policy]]
name  = "names"
match = {{ class = "vm" }}
mode  = "allowlist"
[[policy.allow]]
domains = ["*.{ZONE}"]
ports   = ["tcp/443"]
"""
# What dnsmasq fills, and the filter that reads it: in the host, for what comes from the guest.
FILTER = """
table inet gate {
  set names4 { type ipv4_addr; }
  set names6 { type ipv6_addr; }
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname "h1" ip daddr @names4 tcp dport 443 accept
    iifname "h1" ip6 daddr @names6 tcp dport 443 accept
    iifname "h1" counter reject with icmpx admin-prohibited
  }
}
"""


@pytest.fixture
def lab():
    with Lab("routed") as lab:
        for kind, networks in NETWORKS.items():
            for network in networks:
                lab.internet.ip("-6" if kind == "AAAA" else "-4", "route", "add", "local", network, "dev", "lo")
        count = ROUNDS // 2
        zone = numbered_zone(count, NETWORKS["A"], "A") + numbered_zone(count, NETWORKS["AAAA"], "AAAA")
        server = lab.internet.popen([find_program("first_connect"), "serve"], stdout=subprocess.PIPE)
        lab.cleanups.callback(server.kill)
        server.stdout.readline()
        with Nsd(lab.internet, lab.folder, {ZONE: zone, "names.example": ""}) as upstream:
            lab.upstream = upstream
            yield lab


def ask_all(lab, server4, server6, transports=("udp", "tcp"), count=ROUNDS):
    """Both families, and the transports, at the same time; the counts by way."""
    quarter = count // 4
    ways = [("udp", "4", server4, 0), ("tcp", "4", server4, quarter), ("udp", "6", server6, 0), ("tcp", "6", server6, quarter)]
    ways = [way for way in ways if way[0] in transports]
    asking = {
        (transport, family): lab.guest.popen(
            [find_program("first_connect"), "ask", transport, family, server, ZONE, str(first), str(quarter)],
            stdout=subprocess.PIPE, text=True)
        for transport, family, server, first in ways
    }
    counts = {}
    for way, process in asking.items():
        words = process.communicate(timeout=1700)[0].split()
        assert process.returncode == 0, way
        counts[way] = dict(zip(words[::2], map(float, words[1::2])))
    return counts


def failures(counts):
    return {way: {what: int(count[what]) for what in ("unanswered", "nameless", "refused", "slow")} for way, count in counts.items()}


def tell(who, counts):
    for (transport, family), count in counts.items():
        failed = sum(int(count[what]) for what in ("unanswered", "nameless", "refused", "slow"))
        print(f"{who}, {transport} IPv{family}: {int(count['rounds'])} first connections, {failed} failed, resolve "
              f"{count['resolve_us']:.0f} us, connect {count['connect_us']:.0f} us (worst {count['worst_connect_us']:.0f} us)")


def test_no_first_connection_fails(lab):
    daemon = lab.daemon(POLICY, names_config(options=UNLIMITED), extra_host=UNLIMITED_HOST)
    lab.wait_filtered(daemon)
    # Servers that exist nowhere: whatever answers, it is not them.
    counts = ask_all(lab, "203.0.113.53", "2001:db8:bad::53")
    tell("sluice", counts)
    nothing = {"unanswered": 0, "nameless": 0, "refused": 0, "slow": 0}
    assert failures(counts) == {way: nothing for way in counts}


def test_the_peer_beside_it(lab):
    with nft(lab.host, FILTER), Dnsmasq(lab.host, lab.folder, "198.18.1.1", "198.19.0.2", f"""listen-address=2001:db8:0:1::1
nftset=/{ZONE}/4#inet#gate#names4,6#inet#gate#names6
"""):
        counts = ask_all(lab, "198.18.1.1", "2001:db8:0:1::1", ("udp",), PEER_ROUNDS)
    tell("dnsmasq --nftset", counts)
    assert all(count["rounds"] == PEER_ROUNDS // 4 for count in counts.values())


def test_the_control_run_arrives(lab):
    """Unfiltered, everything connects: what the other tests count is the filter's doing."""
    with Dnsmasq(lab.host, lab.folder, "198.18.1.1", "198.19.0.2", "listen-address=2001:db8:0:1::1"):
        counts = ask_all(lab, "198.18.1.1", "2001:db8:0:1::1", ("udp",), PEER_ROUNDS)
    assert all(count["refused"] == count["nameless"] == 0 for count in counts.values()), failures(counts)
