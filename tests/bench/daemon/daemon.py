"""What the whole daemon takes: resident memory, and a crowd of interfaces from their creation to their policy.

    sudo tests/bench/run.sh [--quick] daemon

sluiced as shipped, in namespaces of the benchmark's own: one `interfaces`, one `static` (a policy of 1,000 prefixes that all
share), and in the second configuration `dns` as well.

- Resident: Rss of /proc/PID/smaps_rollup two seconds after the daemon was ready, so libraries and the mapped parts of BPF maps
  are in it; "own" is what no file backs (Anonymous), which is what the daemon allocated.
- A crowd: that many veth pairs are made by one `ip -batch` while the daemon runs; the time is from the last one's creation until
  the kernel holds every attachment under its policy.
- Restart: kill -9, then from the start of the next process until it says READY=1; the programs of the former one judge all the
  while.
"""

import argparse
import os
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "system"))

from daemon import INTERFACES_CONFIG, names_config  # noqa: E402
from lab import Lab  # noqa: E402
from machine import eventually  # noqa: E402


def policy(prefixes):
    cidrs = ",\n".join(f'"{10 + number // 65536}.{number // 256 % 256}.{number % 256}.0/24"' for number in range(prefixes))
    return f"""
[[policy]]
name  = "crowd"
match = {{ class = "vm" }}
mode  = "allowlist"
[[policy.allow]]
cidrs = [{cidrs}]
"""


def row(what, figure, budget="", verdict="", more=""):
    print(f"  {what:54} {figure:>12} {budget:>12} {verdict:5} {more}", flush=True)


def resident(daemon):
    """(Rss, Anonymous) in bytes."""
    with open(f"/proc/{daemon.process.pid}/smaps_rollup") as file:
        text = file.read()
    return tuple(int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE).group(1)) * 1024 for field in ("Rss", "Anonymous"))


def mebibytes(size):
    return f"{size / 2**20:.1f} MiB"


def memory_row(what, daemon, budget=None):
    time.sleep(2)
    whole, own = resident(daemon)
    row(what, mebibytes(whole), f"<= {budget} MiB" if budget else "", "" if not budget else "ok" if whole <= budget * 2**20 else "OVER",
        f"own {mebibytes(own)}")
    return whole


def crowd(lab, daemon, count):
    """Makes interfaces while the daemon runs, and returns after how many seconds the last one had its policy."""
    lab.host.batch("".join(f"link add hx{number} type veth peer name px{number}\nlink set hx{number} up\n" for number in range(count)))
    began = time.monotonic()
    eventually(lambda: sum(slot["mode"] == 1 for slot in daemon.slots()) >= count + 1, f"{count} interfaces under their policy",
               pause=0.005)
    return time.monotonic() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    count = 100 if parser.parse_args().quick else 1000
    print("\nDaemon: resident memory; a crowd of interfaces; restart")
    row("", "figure", "budget", "", "")
    with Lab("routed") as lab:
        lab.host.sysctl(ipv6__conf__default__disable_ipv6=1)
        options = {"policy": policy(1000), "max_attachments": 4096}
        daemon = lab.daemon(config=names_config(), **options)
        lab.wait_filtered(daemon)
        memory_row("resident, static policy and dns, 1 attachment", daemon)
        daemon.forget()

        daemon = lab.daemon(config=INTERFACES_CONFIG, **options)
        lab.wait_filtered(daemon)
        alone = memory_row("resident, static policy only, 1 attachment", daemon, 12)
        waited = crowd(lab, daemon, count)
        row(f"{count} interfaces made at once: the last in force after", f"{waited * 1e3:.0f} ms")
        beside = memory_row(f"resident, {count} attachments", daemon)
        grown = beside - alone
        allowed = 4 * count / 1000
        row(f"grown by {count} attachments", mebibytes(grown), f"<= {allowed:.1f} MiB", "ok" if grown <= allowed * 2**20 else "OVER",
            f"{grown // count} B each")
        times = []
        for _ in range(3):
            daemon.kill()
            began = time.monotonic()
            daemon.start()
            times.append(time.monotonic() - began)
        row(f"restart with {count} after kill -9: until READY=1", f"{sorted(times)[1] * 1e3:.0f} ms", "", "",
            f"of three: {', '.join(f'{value * 1e3:.0f}' for value in times)} ms")
        memory_row("resident, after adopting them", daemon)
    return 0


if __name__ == "__main__":
    sys.exit(main())
