"""kill -9 under a load of questions: what is lost is a client's retry at most, nothing wrong is ever answered, and after the new daemon's
first answer no first connection fails."""

import socket
import struct
import threading
import time

import pytest
from daemon import names_config
from lab import Lab
from machine import eventually, rounds
from name_servers import wire_name
from scripted_upstream import ScriptedUpstream, records
from traffic import tcp_exchange

DEATHS = rounds(30, 3)
CONFIG = names_config(
    options='limit = { names_per_wildcard = 65000, names = 65000, window = "1s", upstream_rate = 100000, upstream_burst = 100000 }')
POLICY = """
[[policy]]
name  = "names"
match = { class = "vm" }
mode  = "allowlist"
[[policy.allow]]
domains = ["*.names.example"]
ports   = ["tcp/443"]
"""


PATIENCE = 5  # seconds that a C library waits, twice


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
            client.settimeout(PATIENCE)
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
        long_gaps = 0  # nobody was there when the client asked once more: a sanitizer's start, a machine with much else to do
        for _ in range(DEATHS):
            before = client.answered
            while client.answered < before + 40:
                time.sleep(0.01)
            died = time.monotonic()
            daemon.kill()
            daemon.start()
            long_gaps += time.monotonic() - died >= PATIENCE
        before = client.answered
        while client.answered < before + 40:
            time.sleep(0.01)
        client.running = False
        client.join()
        print(f"{DEATHS} deaths: {client.asked} questions, {client.retried} asked twice, {client.lost} lost ({long_gaps} starts took longer than "
              f"a client waits), {client.wrong} wrong answers, {client.refused_connections} first connections failed")
        assert client.wrong == 0
        assert client.refused_connections == 0
        assert client.lost <= long_gaps
        assert client.retried <= DEATHS
        assert not script.faults


def resolve(lab, name, number=1):
    """The address that the guest is given."""
    rcode, address = Client(lab).ask(name, number)
    assert rcode == 0 and address
    return address


def test_a_rule_that_goes_while_no_daemon_runs_takes_its_addresses():
    with Lab("routed") as lab:
        script = ScriptedUpstream(lab.internet, "198.19.0.2")
        lab.cleanups.callback(script.stop)
        for number, name in enumerate(("stays", "goes"), 1):
            script.script[f"{name}.example"] = lambda q, name=name, number=number: records(f"{name}.example 3600 A 198.51.100.{number}")
        lab.serve(udp=[443])
        policy = POLICY.replace('"*.names.example"', '"stays.example", "goes.example"')
        daemon = lab.daemon(policy, CONFIG)
        lab.wait_filtered(daemon)
        stays, goes = resolve(lab, "stays.example"), resolve(lab, "goes.example", 2)
        assert [tcp_exchange(lab.guest, address, 443) for address in (stays, goes)] == ["ok", "ok"]
        with lab.guest.socket(socket.AF_INET, socket.SOCK_STREAM) as live:
            live.settimeout(5)
            live.connect((stays, 443))

            def talks():
                live.sendall(b"still here")
                return live.recv(10) == b"still here"

            daemon.kill()
            daemon.write_policy("lab.toml", policy.replace(', "goes.example"', ""))
            assert talks()
            daemon.start()
            eventually(lambda: goes not in daemon.learned(lab.host.ifindex("h1")), "the address of the rule that went, closed")
            assert tcp_exchange(lab.guest, goes, 443) != "ok"
            assert talks(), "a connection to an address whose rule stayed was cut"
            assert tcp_exchange(lab.guest, stays, 443) == "ok", "what was resolved before is closed"
        # And the one that stayed is known by its rule: it goes with it.
        daemon.write_policy("lab.toml", policy.replace('"stays.example", "goes.example"', '"other.example"'))
        eventually(lambda: not daemon.learned(lab.host.ifindex("h1")), "the other one closed as well")
        assert not script.faults


@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "lost"])
def test_a_question_of_the_meantime_waits_where_the_service_manager_keeps_sockets(keeps):
    with Lab("routed") as lab:
        script = ScriptedUpstream(lab.internet, "198.19.0.2")
        lab.cleanups.callback(script.stop)
        script.script["n1.names.example"] = lambda q: records("n1.names.example 60 A 198.51.100.7")
        lab.serve(udp=[443])
        daemon = lab.daemon(POLICY, CONFIG, start=False)
        daemon.keeps_descriptors = keeps
        lab.cleanups.callback(daemon.forget_descriptors)
        daemon.start()
        lab.wait_filtered(daemon)
        assert bool(daemon.kept) == keeps
        assert resolve(lab, "n1.names.example") == "198.51.100.7"
        kept = list(daemon.kept)
        daemon.kill()
        query = struct.pack("!HH4H", 7, 0x0100, 1, 0, 0, 0) + wire_name("n1.names.example") + struct.pack("!HH", 1, 1)
        with lab.guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("203.0.113.53", 53))
            client.settimeout(5)
            client.send(query)
            daemon.start()
            assert daemon.kept == kept, "the next daemon keeps the same sockets"
            if not keeps:
                client.settimeout(1)
                with pytest.raises(OSError):
                    client.recv(4096)
                return
            answer = client.recv(4096)
        assert answer[:2] == query[:2] and socket.inet_ntoa(answer[-4:]) == "198.51.100.7"
        assert tcp_exchange(lab.guest, "198.51.100.7", 443) == "ok"
