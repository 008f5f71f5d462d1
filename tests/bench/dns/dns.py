"""What a DNS question costs, beside unbound, dnsmasq, dnsmasq --nftset and dnsdist: same guest, same host, same upstream.

    sudo tests/bench/run.sh [--quick] dns

The guest asks with dnsperf; the server under test runs in the host's namespace, nsd beyond the uplink. All contenders take turns
within each round. Cold: every question names something nobody has asked for. Hot: a hundred names again and again.

- CPU per question: user and system time of the server's process (all threads) at a fixed rate, from /proc; the main figure.
- Latency: of each answer at a low rate (median, 99th percentile), by dnsperf.
- Saturation: answers a second when as much is asked as comes back.
- A neighbour's flood (alone with --flood pinned or --flood shared): the latency of one workload's answers from memory while another
  sends as fast as it can, or in bursts of a thousand; beside it the same flood to a port that policy drops at the tap, which is the
  machine's share. "pinned": the flooder on one core; the neighbour, sluice and its upstream on the other. "shared": all on both. Each
  figure is the median of the rounds, each of 3,200 answers; caps as shipped, but that a name counts for a second (`limit.window`).
"""

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "system"))

from daemon import UNLIMITED, UNLIMITED_HOST, names_config  # noqa: E402
from lab import Lab  # noqa: E402
from name_servers import Dnsdist, Dnsmasq, Nsd, Unbound, nft  # noqa: E402

ZONE = "bench.example"
TICKS = os.sysconf("SC_CLK_TCK")

POLICY = f"""
[[policy]]
name  = "names"
match = {{ class = "vm" }}
mode  = "allowlist"
[[policy.allow]]
domains = ["*.{ZONE}", "names.example", "*.names.example"]
ports   = ["tcp/443"]
"""
SETS = """
table inet gate {
  set names4 { type ipv4_addr; }
  set names6 { type ipv6_addr; }
}
"""


def cpu_ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


class Contender:
    """A server under test: `address` to ask, `pid` to charge."""

    def __init__(self, name, address, pid):
        self.name, self.address, self.pid = name, address, pid


@contextlib.contextmanager
def contender(lab, name, number):
    folder, upstream = lab.folder, "198.19.0.2"
    tag = f"{name.replace(' ', '').replace('--', '-')}{number}"
    if name == "sluice":
        daemon = lab.daemon(POLICY, names_config(options=UNLIMITED), extra_host=UNLIMITED_HOST)
        try:
            lab.wait_filtered(daemon)
            yield Contender(name, "203.0.113.53", daemon.process.pid)
        finally:
            daemon.forget()
        return
    with contextlib.ExitStack() as stack:
        if name == "dnsmasq":
            server = Dnsmasq(lab.host, folder, "198.18.1.1", upstream, name=tag)
        elif name == "dnsmasq --nftset":
            stack.enter_context(nft(lab.host, SETS))
            server = Dnsmasq(lab.host, folder, "198.18.1.1", upstream, f"nftset=/{ZONE}/4#inet#gate#names4,6#inet#gate#names6", name=tag)
        elif name == "unbound":
            server = Unbound(lab.host, folder, "198.18.1.1", upstream, name=tag)
        else:
            server = Dnsdist(lab.host, folder, "198.18.1.1", upstream, name=tag)
        stack.enter_context(server)
        yield Contender(name, "198.18.1.1", server.process.pid)


CONTENDERS = ["sluice", "unbound", "dnsmasq", "dnsmasq --nftset", "dnsdist"]


def questions(lab, name, lines):
    path = os.path.join(lab.folder, name)
    with open(path, "w") as file:
        file.writelines(lines)
    return path


_salt = 0


def cold(lab, count):
    """Names never asked for before; dnsperf goes through its file from the top on each run, so each run has its own."""
    global _salt
    _salt += 1
    return questions(lab, "cold", (f"c{_salt}-{number}.{ZONE} A\n" for number in range(count)))


def hot(lab, _count):
    return questions(lab, "hot", (f"h{number}.{ZONE} A\n" for number in range(100)))


def perf(lab, server, file, *options, once=True, guest=None, wrapper=()):
    words = [*wrapper, shutil.which("dnsperf"), "-s", server.address, "-d", file, "-c", "8", "-T", "1", *options]
    if once:
        words += ["-n", "1"]
    output = (guest or lab.guest).run(*words)

    def field(pattern):
        match = re.search(pattern, output)
        return float(match.group(1)) if match else 0.0

    return {
        "sent": field(r"Queries sent:\s+(\d+)"),
        "completed": field(r"Queries completed:\s+(\d+)"),
        "lost": field(r"Queries lost:\s+(\d+)"),
        "rate": field(r"Queries per second:\s+([\d.]+)"),
        "noerror": field(r"NOERROR (\d+)"),
        "latencies": [float(value) * 1e6 for value in re.findall(r"^> NOERROR \S+ \S+ ([\d.]+)", output, re.MULTILINE)],
    }


def fixed_rate(lab, server, make, rate, seconds):
    """CPU microseconds per question, and how much was lost."""
    count = rate * seconds
    file = make(lab, count)
    repeat = make is hot
    before = cpu_ticks(server.pid)
    result = perf(lab, server, file, "-Q", str(rate), *(["-l", str(seconds)] if repeat else []), once=not repeat)
    spent = (cpu_ticks(server.pid) - before) / TICKS
    return spent / max(result["completed"], 1) * 1e6, result["lost"] / max(result["sent"], 1)


def latency(lab, server, make, rate, seconds):
    file = make(lab, rate * seconds)
    repeat = make is hot
    values = sorted(perf(lab, server, file, "-v", "-Q", str(rate), *(["-l", str(seconds)] if repeat else []), once=not repeat)["latencies"])
    if not values:
        return float("nan"), float("nan")
    return values[len(values) // 2], values[min(len(values) - 1, len(values) * 99 // 100)]


def saturation(lab, server, make, seconds):
    file = make(lab, 400_000)
    return perf(lab, server, file, "-q", "200", "-l", str(seconds), once=make is not hot)["rate"]


def percentile(values, share):
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


# What the flood is made of: `burst` questions at once, as often as `rate` a second says. It reads no answer, so it sends the same
# whoever takes it, and what it sent it says when it is ended.
FLOODER = """
import contextlib, random, signal, socket, sys, time
port, rate, burst, name = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
labels = [bytes([len(label)]) + label.encode() for label in name.split(".")]
tail = b"".join(labels) + b"\\0\\0\\1\\0\\1"
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
client.connect(("203.0.113.53", port))
sent, salt = 0, "%08x" % random.getrandbits(32)
def end(*_):
    print(sent, time.monotonic() - began, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
began = due = time.monotonic()
while True:
    for _ in range(burst):
        with contextlib.suppress(OSError):  # a refusal of the one before
            client.send(sent.to_bytes(4, "big")[2:] + b"\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + b"\\x10" + (salt + "%08x" % sent).encode() + tail)
        sent += 1
    due += burst / rate
    pause = due - time.monotonic()
    if pause > 0:
        time.sleep(pause)
"""
STEADY, BURSTS = (10_000_000, 1), (4_000, 1_000)  # as many bursts as the budget in the kernel lets through whole
FLOODS = [  # what it is, what it is compared with, the port, (rate, burst), the zone
    ("alone", None, 0, None, None),
    ("as fast as it can, dropped at the tap", None, 5353, STEADY, "elsewhere.example"),
    ("as fast as it can, denied names", 1, 53, STEADY, "elsewhere.example"),
    ("as fast as it can, new names", 1, 53, STEADY, ZONE),
    ("4 x 1,000/s, dropped at the tap", None, 5353, BURSTS, "elsewhere.example"),
    ("4 x 1,000/s, denied names", 4, 53, BURSTS, "elsewhere.example"),
    ("4 x 1,000/s, new names", 4, 53, BURSTS, ZONE),
]
# With the window as shipped the flood of new names would be one of names over the cap after the first thousand.
SHIPPED = 'limit = { window = "1s" }'


def flood(lab, neighbour, upstream, seconds, rounds, pinned):
    """`pinned`: the flooder has a core of its own, as on a host where each workload has its share of the processors."""
    daemon = lab.daemon(POLICY, names_config(options=SHIPPED))
    try:
        lab.wait_filtered(daemon)
        lab.wait_filtered(daemon, "h2")
        here, there = ["taskset", "-c", "0"] if pinned else [], ["taskset", "-c", "1"] if pinned else []
        if pinned:
            for pid in (daemon.process.pid, upstream.process.pid):
                subprocess.run(["taskset", "-a", "-p", "-c", "0", str(pid)], check=True, capture_output=True)
        server = Contender("sluice", "203.0.113.53", daemon.process.pid)
        known = questions(lab, "known", (f"h{number}.{ZONE} A\n" for number in range(100)))
        perf(lab, server, known, "-Q", "500", guest=neighbour)
        seen = {what: [] for what, *_ in FLOODS}
        for _ in range(rounds):
            for what, _, port, shape, zone in FLOODS:
                process = None
                if shape:
                    process = lab.guest.popen([*there, sys.executable, "-c", FLOODER, str(port), *map(str, shape), zone],
                                              stdout=subprocess.PIPE, text=True)
                    time.sleep(1)
                result = perf(lab, server, known, "-v", "-Q", "800", "-l", str(seconds), once=False, guest=neighbour, wrapper=here)
                rate = 0.0
                if process:
                    process.terminate()
                    sent, took = map(float, process.communicate()[0].split())
                    rate = sent / took
                values = sorted(result["latencies"])
                seen[what].append((percentile(values, 0.5), percentile(values, 0.99), result["lost"] / max(result["sent"], 1) * 100, rate))
        place = "the flooder on a core of its own" if pinned else "all on the same cores"
        print(f"\nA neighbour's answers from memory, 800 a second for {seconds} s, beside one workload's flood; {place}; {rounds} rounds, medians")
        print(f"{'':40}{'sent 1/s':>10}{'p50 us':>9}{'p99 us':>9}{'lost %':>9}{'p99 to that of the same flood, dropped':>41}")
        middle = [[statistics.median(column) for column in zip(*rows)] for rows in seen.values()]
        for (what, control, *_), (p50, p99, lost, rate) in zip(FLOODS, middle):
            ratio = f"{(p99 / middle[control][1] - 1) * 100:+.0f} %" if control else ""
            print(f"  {what:38}{rate:10.0f}{p50:9.0f}{p99:9.0f}{lost:9.2f}{ratio:>41}", flush=True)
    finally:
        daemon.forget()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--flood", choices=["pinned", "shared"], help="only a neighbour's flood")
    arguments = parser.parse_args()
    rounds, seconds, rate = (1, 2, 4000) if arguments.quick else (3, 4, 6000)
    figures = {name: {} for name in CONTENDERS}
    with Lab("routed") as lab, Nsd(lab.internet, lab.folder, {
            ZONE: "* 300 A 198.51.100.10\n* 300 AAAA 2001:db8:a::10\n", "names.example": ""}) as upstream:
        lab.sniffer.stop()  # it would look at each packet of the uplink
        for number in range(0 if arguments.flood else rounds):
            for name in CONTENDERS:
                with contender(lab, name, number) as server:
                    perf(lab, server, hot(lab, 0), "-Q", "500")  # warm, also the caches of names
                    for kind, make in (("cold", cold), ("hot", hot)):
                        cpu, lost = fixed_rate(lab, server, make, rate, seconds)
                        median, worst = latency(lab, server, make, 1000, seconds)
                        for what, value in (("cpu", cpu), ("lost", lost * 100), ("p50", median), ("p99", worst),
                                            ("rate", saturation(lab, server, make, seconds))):
                            figures[name].setdefault(f"{kind} {what}", []).append(value)
        neighbour = lab.add_guest(2)
        for pinned in (True, False) if arguments.flood is None else (arguments.flood == "pinned",):
            flood(lab, neighbour, upstream, 4, rounds, pinned)
    if arguments.flood:
        return 0
    print(f"\nDNS: dnsperf through a veth, nsd behind it; {rounds} rounds in turns, medians; fixed rate {rate} a second")
    columns = ["cold cpu", "cold p50", "cold p99", "cold rate", "cold lost", "hot cpu", "hot p50", "hot p99", "hot rate", "hot lost"]
    units = ["us", "us", "us", "1/s", "%", "us", "us", "us", "1/s", "%"]
    print(f"{'':18}" + "".join(f"{column + ' ' + unit:>15}" for column, unit in zip(columns, units)))
    for name in CONTENDERS:
        print(f"{name:18}" + "".join(f"{statistics.median(figures[name][column]):15.1f}" for column in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
