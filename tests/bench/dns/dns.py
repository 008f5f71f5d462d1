"""What a DNS question costs, beside unbound, dnsmasq, dnsmasq --nftset and dnsdist: same guest, same host, same upstream.

    sudo tests/bench/run.sh [--quick] dns

The guest asks with dnsperf; the server under test runs in the host's namespace, nsd beyond the uplink. All contenders take turns
within each round. Cold: every question names something nobody has asked for. Hot: a hundred names again and again.

- CPU per question: user and system time of the server's process (all threads) at a fixed rate, from /proc; the main figure.
- Latency: of each answer at a low rate (median, 99th percentile), by dnsperf.
- Saturation: answers a second when as much is asked as comes back.
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


def perf(lab, server, file, *options, once=True, guest=None):
    words = [shutil.which("dnsperf"), "-s", server.address, "-d", file, "-c", "8", "-T", "1", *options]
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


def flood(lab, seconds, rounds):
    """What one workload's flood does to another's answers: sluice with the caps it ships with, a neighbour that asks 500 times a second
    for a name in memory, alone and while the first guest sends as fast as it can."""
    neighbour = lab.add_guest(2)
    daemon = lab.daemon(POLICY, names_config())
    try:
        lab.wait_filtered(daemon)
        lab.wait_filtered(daemon, "h2")
        server = Contender("sluice", "203.0.113.53", daemon.process.pid)
        denied = questions(lab, "denied", (f"d{number}.elsewhere.example A\n" for number in range(100_000)))
        unique = cold(lab, 200_000)
        known = questions(lab, "known", (f"h{number}.{ZONE} A\n" for number in range(100)))
        kinds = {"alone": None, "a flood of denied names": denied, "a flood of new names": unique}
        seen = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, file in kinds.items():
                process = None
                if file:
                    process = lab.guest.popen([shutil.which("dnsperf"), "-s", server.address, "-d", file, "-q", "5000", "-t", "1", "-l", "600"],
                                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    time.sleep(0.5)
                result = perf(lab, server, known, "-v", "-Q", "500", "-l", str(seconds), once=False, guest=neighbour)
                if process:
                    process.kill()
                    process.wait()
                values = sorted(result["latencies"])
                seen[kind].append((percentile(values, 0.5), percentile(values, 0.99), result["lost"] / max(result["sent"], 1) * 100))
        print("\nA neighbour's answers from memory, 500 a second, while one workload floods (medians)")
        for kind, rows in seen.items():
            middle = [statistics.median(column) for column in zip(*rows)]
            print(f"  {kind:26} p50 {middle[0]:8.0f} us   p99 {middle[1]:8.0f} us   lost {middle[2]:.2f} %")
    finally:
        daemon.forget()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds, seconds, rate = (1, 2, 4000) if arguments.quick else (3, 4, 6000)
    figures = {name: {} for name in CONTENDERS}
    with Lab("routed") as lab, Nsd(lab.internet, lab.folder, {
            ZONE: "* 300 A 198.51.100.10\n* 300 AAAA 2001:db8:a::10\n", "names.example": ""}):
        for number in range(rounds):
            for name in CONTENDERS:
                with contender(lab, name, number) as server:
                    perf(lab, server, hot(lab, 0), "-Q", "500")  # warm, also the caches of names
                    for kind, make in (("cold", cold), ("hot", hot)):
                        cpu, lost = fixed_rate(lab, server, make, rate, seconds)
                        median, worst = latency(lab, server, make, 1000, seconds)
                        for what, value in (("cpu", cpu), ("lost", lost * 100), ("p50", median), ("p99", worst),
                                            ("rate", saturation(lab, server, make, seconds))):
                            figures[name].setdefault(f"{kind} {what}", []).append(value)
        flood(lab, seconds, rounds)
    print(f"\nDNS: dnsperf through a veth, nsd behind it; {rounds} rounds in turns, medians; fixed rate {rate} a second")
    columns = ["cold cpu", "cold p50", "cold p99", "cold rate", "cold lost", "hot cpu", "hot p50", "hot p99", "hot rate", "hot lost"]
    units = ["us", "us", "us", "1/s", "%", "us", "us", "us", "1/s", "%"]
    print(f"{'':18}" + "".join(f"{column + ' ' + unit:>15}" for column, unit in zip(columns, units)))
    for name in CONTENDERS:
        print(f"{name:18}" + "".join(f"{statistics.median(figures[name][column]):15.1f}" for column in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
