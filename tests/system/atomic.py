"""A policy is replaced whole: never does a packet meet half of one.

A guest sends to denied and to allowed addresses all the time while its 4,000-rule denylist is replaced by itself. Not one denied
packet passes and not one allowed packet is lost. The same for an allowlist, where a torn policy would cut.
"""

import random
import struct

import pytest

from lab import ALLOWED4, ALLOWED6, DENIED4, DENIED6, Lab
from machine import eventually, rounds
from workloads import Pulse

RULES = 4000
TO_DENIED, TO_ALLOWED = (1, 2), (3, 4)  # IPv4 and IPv6 each


def prefixes():
    """4,000 prefixes among which the lab's own denied addresses hide, in an order that never repeats."""
    dice = random.Random(4000)
    made = {f"10.{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(64) * 4}/30" for _ in range(RULES)}
    made = sorted(made)[:RULES - 1000]
    made += [f"2001:db8:{0x1000 + i:x}::/48" for i in range(1000 - 2)]
    return made


def denylist(number, others):
    """Equal in meaning each time; one prefix that concerns nobody tells the versions apart."""
    dice = random.Random(number)
    dice.shuffle(others)
    listed = ",\n".join(f'"{p}"' for p in others + [f"{DENIED4}/32", f"{DENIED6}/128", f"100.{64 + number % 64}.{number // 64 % 256}.0/24"])
    return f'[[policy]]\nname = "list"\nmatch = {{ class = "vm" }}\nmode = "denylist"\n[[policy.deny]]\ncidrs = [{listed}]\n'


def allowlist(number, others):
    dice = random.Random(number)
    dice.shuffle(others)
    listed = ",\n".join(f'"{p}"' for p in others + ["198.51.100.0/24", "2001:db8:a::/48", f"100.{64 + number % 64}.{number // 64 % 256}.0/24"])
    return f'[[policy]]\nname = "list"\nmatch = {{ class = "vm" }}\nmode = "allowlist"\n[[policy.allow]]\ncidrs = [{listed}]\n'


def sequences(lab, number):
    """Sequence numbers seen of a pulse's stream."""
    marker = lab.marker(number)
    return [struct.unpack("!Q", frame[-8:])[0] for frame in lab.sniffer.frames if marker in frame]


def all_streams(lab):
    """A pulse of the guest's: two streams that policy denies, two that it allows, IPv4 and IPv6 each."""
    return Pulse(lab.guest, *[("g1", lab.udp_frame(number, address)) for number, address in zip(
        TO_DENIED + TO_ALLOWED, (DENIED4, DENIED6, ALLOWED4, ALLOWED6))], interval_us=300)


def expect_whole_streams(lab, sent):
    """Of what such a pulse has sent: nothing that is denied has arrived, and of what is allowed nothing is missing."""
    lab.flush(lambda: lab.sender.send(lab.sentinel_frame()))
    for number, count in zip(TO_DENIED, sent[:2]):
        assert count > 0 and sequences(lab, number) == [], "denied packets passed"
    for number, count in zip(TO_ALLOWED, sent[2:]):
        seen = sequences(lab, number)
        assert seen == list(range(count)), f"{count - len(set(seen))} of {count} allowed packets were lost"


@pytest.mark.parametrize("make", [denylist, allowlist])
def test_a_replaced_policy_is_never_half_there(make):
    others = prefixes()
    with Lab("routed") as lab:
        daemon = lab.daemon(make(0, others))
        lab.wait_filtered(daemon, mode=2 if make is denylist else 1)
        slot = daemon.live_slot(ifindex=lab.host.ifindex("h1"))
        pulse = all_streams(lab)
        try:
            replaced = rounds(1000, 100)
            for number in range(1, replaced + 1):
                before = slot.generation
                daemon.write_policy("lab.toml", make(number, others))
                eventually(lambda: slot.generation != before, f"replacement {number} in the kernel", pause=0.001)
        finally:
            sent = pulse.stop()
            slot.close()
        expect_whole_streams(lab, sent)
        print(f"{make.__name__}: {replaced} replacements of {RULES} rules under {sum(sent)} packets")


def test_control_the_same_traffic_arrives_when_nothing_filters():
    with Lab("routed") as lab:
        pulse = all_streams(lab)
        eventually(lambda: len(sequences(lab, TO_ALLOWED[1])) > 1000, "a thousand packets of the last stream")
        sent = pulse.stop()
        lab.flush(lambda: lab.sender.send(lab.sentinel_frame()))
        for number, count in zip(TO_DENIED + TO_ALLOWED, sent):
            assert sequences(lab, number) == list(range(count))
