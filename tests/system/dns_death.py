"""kill -9 under a load of questions: what is lost is a client's retry at most, nothing wrong is ever answered, and after the new daemon's
first answer no first connection fails."""

import socket
import struct
import threading
import time

from lab import Lab, rounds, tcp_exchange
from name_servers import wire_name
from scripted_upstream import ScriptedUpstream, records

DEATHS = rounds(30, 3)
CONFIG = """
[plugin.taps]
library = "interfaces"
match   = ["h*"]
labels  = { class = "vm" }

[plugin.static]
library  = "static"
policies = ["{policies}"]

[plugin.dns]
library   = "dns"
upstreams = ["198.19.0.2"]
limit     = { names_per_wildcard = 65000, names = 65000, window = "1s", upstream_rate = 100000, upstream_burst = 100000 }

[[wire]]
targets = { discovered_by = "taps" }
sources = ["static", "dns"]
mode    = "block-all"
"""
POLICY = """
[[policy]]
name  = "names"
match = { class = "vm" }
mode  = "allowlist"
[[policy.allow]]
domains = ["*.names.example"]
ports   = ["tcp/443"]
"""


class Client(threading.Thread):
    """Asks again and again as a C library does: five seconds, then once more; connects to every new address it is given."""

    def __init__(self, lab):
        super().__init__(daemon=True)
        self.lab, self.running = lab, True
        self.asked = self.retried = self.lost = self.wrong = self.refused_connections = self.answered = 0

    def run(self):
        number = 0
        while self.running:
            number += 1
            denied = number % 5 == 0
            name = f"n{number}.elsewhere.example" if denied else f"n{number}.names.example"
            answer = self.ask(name, number)
            self.asked += 1
            if answer is None:
                self.lost += 1
                continue
            rcode, address = answer
            self.answered += 1
            if denied:
                self.wrong += rcode != 3 or address is not None
                continue
            expected = f"198.51.100.{number % 250 + 1}"
            self.wrong += address not in (expected, None) or (address is None and rcode not in (0, 2))
            if address and tcp_exchange(self.lab.guest, address, 443) != "ok":
                self.refused_connections += 1

    def ask(self, name, number):
        """(rcode, address or None), or None when two tries got nothing."""
        query = struct.pack("!HH4H", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + wire_name(name) + struct.pack("!HH", 1, 1)
        with self.lab.guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("203.0.113.53", 53))
            client.settimeout(5)
            for attempt in range(2):
                self.retried += attempt
                try:
                    client.send(query)
                    answer = client.recv(4096)
                except OSError:
                    continue
                if answer[:2] != query[:2]:
                    self.wrong += 1
                    return None
                has = struct.unpack_from("!H", answer, 6)[0]
                return answer[3] & 15, socket.inet_ntoa(answer[-4:]) if has else None
        return None


def test_kill_9_under_questions():
    with Lab("routed") as lab:
        script = ScriptedUpstream(lab.internet, "198.19.0.2")
        lab.cleanups.callback(script.stop)

        class Numbered(dict):
            """n<i>.names.example has the address that belongs to i."""

            def get(self, name, default=None):
                number = int(name.split(".")[0][1:])
                return lambda query: records(f"{name} 60 A 198.51.100.{number % 250 + 1}")

        script.script = Numbered()
        lab.serve(udp=[443])
        daemon = lab.daemon(POLICY, CONFIG)
        lab.wait_filtered(daemon)
        client = Client(lab)
        client.start()
        for _ in range(DEATHS):
            before = client.answered
            while client.answered < before + 40:
                time.sleep(0.01)
            daemon.kill()
            daemon.start()
        before = client.answered
        while client.answered < before + 40:
            time.sleep(0.01)
        client.running = False
        client.join()
        print(f"{DEATHS} deaths: {client.asked} questions, {client.retried} asked twice, {client.lost} lost, {client.wrong} wrong answers, "
              f"{client.refused_connections} first connections failed")
        assert client.wrong == 0
        assert client.refused_connections == 0
        assert client.lost == 0
        assert client.retried <= DEATHS
        assert not script.faults
