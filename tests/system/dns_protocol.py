"""What a workload's resolver answers to questions of every shape: the matrix of RFC 8906 section 8, asked with dig, over UDP and TCP;
what glibc and musl make of a refused name; and messages that are no questions at all.
"""

import os
import re
import socket
import struct
import subprocess

import pytest
from daemon import names_config
from lab import Lab
from machine import find_program
from name_servers import Nsd, wire_name

SERVER4, SERVER6 = "203.0.113.53", "2001:db8:bad::53"  # nothing is there: the host answers in its place
POLICY = """
[[policy]]
name  = "names"
match = { class = "vm" }
mode  = "allowlist"
[[policy.allow]]
domains = [".names.example"]
types   = ["TXT", "SOA"]
"""
ZONE = "www A 198.51.100.10\nwww AAAA 2001:db8:a::10\ntext TXT \"hello\"\n" + "".join(
    f"big A 198.51.100.{number}\nbig AAAA 2001:db8:a::{number:x}\n" for number in range(1, 101))


@pytest.fixture(scope="module")
def lab():
    with Lab("routed") as lab, Nsd(lab.internet, lab.folder, {"names.example": ZONE}):
        lab.wait_filtered(lab.daemon(POLICY, names_config()))
        yield lab


def dig(lab, *words):
    with lab.guest.inside():
        return subprocess.run(["dig", "+time=30", "+tries=1", "+nocookie", "+noadflag", f"@{SERVER4}", *words], capture_output=True, text=True).stdout


OK, BAD_VERSION, NOT_IMPLEMENTED = r"status: NOERROR", r"status: BADVERS", r"status: NOTIMP"
EDNS0 = r"EDNS: version: 0"
MATRIX = [  # what, dig's words, what must be there, what must not
    ("plain DNS", ["+noedns", "www.names.example", "A"], [OK, r"198\.51\.100\.10"], [r"EDNS:"]),
    ("a type that is unknown", ["+noedns", "www.names.example", "TYPE1000"], [OK, "ANSWER: 0"], [r"EDNS:"]),
    ("checking disabled", ["+noedns", "+cd", "www.names.example", "A"], [OK, r"198\.51\.100\.10"], []),
    ("the AD bit", ["+noedns", "+ad", "www.names.example", "A"], [OK, r"198\.51\.100\.10"], []),
    ("the reserved bit", ["+noedns", "+zflag", "www.names.example", "A"], [OK, r"198\.51\.100\.10"], [r"MBZ"]),
    ("an opcode that is unknown", ["+noedns", "+opcode=15", "+header-only"], [NOT_IMPLEMENTED], []),
    ("an opcode that is unknown, with a question", ["+noedns", "+opcode=15", "www.names.example"], [NOT_IMPLEMENTED], []),
    ("an update", ["+noedns", "+opcode=5", "www.names.example"], [NOT_IMPLEMENTED], []),
    ("recursion asked for", ["+noedns", "+rec", "www.names.example", "A"], [OK, r"flags:[^;]* ra"], []),
    ("TCP", ["+noedns", "+tcp", "www.names.example", "A"], [OK, r"198\.51\.100\.10"], []),
    ("EDNS", ["+edns=0", "www.names.example", "A"], [OK, EDNS0, r"198\.51\.100\.10"], []),
    ("EDNS version 1", ["+edns=1", "+noednsneg", "www.names.example", "A"], [BAD_VERSION, EDNS0], [r"198\.51\.100\.10"]),
    ("EDNS version 1 and an option", ["+edns=1", "+noednsneg", "+ednsopt=100", "www.names.example", "A"], [BAD_VERSION, EDNS0],
     [r"198\.51\.100\.10", "OPT=100"]),
    ("an option that is unknown", ["+ednsopt=100", "www.names.example", "A"], [OK, EDNS0, r"198\.51\.100\.10"], ["OPT=100"]),
    ("EDNS flags that are unknown", ["+ednsflags=0x40", "www.names.example", "A"], [OK, EDNS0, r"198\.51\.100\.10"], [r"MBZ"]),
    ("a cookie", ["+cookie", "www.names.example", "A"], [OK, EDNS0, r"198\.51\.100\.10"], []),
    ("a client subnet", ["+subnet=198.51.100.0/24", "www.names.example", "A"], [OK, r"198\.51\.100\.10"], []),
    ("DNSSEC OK", ["+dnssec", "www.names.example", "A"], [OK, EDNS0, r"flags: do", r"198\.51\.100\.10"], []),
    ("an answer too big for 512 bytes", ["+noedns", "+ignore", "big.names.example", "A"], [OK, r"flags:[^;]* tc"], [r"EDNS:"]),
    ("an answer too big for the size given", ["+bufsize=600", "+ignore", "big.names.example", "A"], [OK, r"flags:[^;]* tc"], []),
    ("the same by TCP", ["+tcp", "big.names.example", "AAAA"], [OK, "ANSWER: 100"], [r"flags:[^;]* tc"]),
    ("another class", ["www.names.example", "CH", "TXT"], [r"status: (REFUSED|NOTIMP)"], []),
    ("a type that the rule adds", ["text.names.example", "TXT"], [OK, "hello"], []),
    ("a type that no rule adds", ["www.names.example", "MX"], [OK, "ANSWER: 0", r"EDE: 17"], []),
    ("a name that does not exist", ["nothing.names.example", "A"], [r"status: NXDOMAIN"], []),
    ("a name that no rule allows", ["www.elsewhere.example", "A"], [r"status: NXDOMAIN", r"EDE: 15", "AUTHORITY: 0"], []),
    ("a zone transfer", ["names.example", "AXFR"], [], [r"198\.51\.100\.10"]),
    ("everything", ["www.names.example", "ANY"], [], [r"198\.51\.100\.10"]),
]


@pytest.mark.parametrize("what, words, there, absent", MATRIX, ids=[row[0] for row in MATRIX])
def test_the_matrix(lab, what, words, there, absent):
    output = dig(lab, *words)
    assert output, what
    for pattern in there:
        assert re.search(pattern, output), f"{what}: no {pattern} in\n{output}"
    for pattern in absent:
        assert not re.search(pattern, output), f"{what}: {pattern} in\n{output}"


QUESTION = wire_name("www.names.example") + struct.pack("!HH", 1, 1)


def message(flags=0x0100, counts=(1, 0, 0, 0), body=QUESTION):
    return struct.pack("!HH4H", 0x1234, flags, *counts) + body


# What it is, the message, the expected response code; None: nothing comes back.
NO_QUESTIONS = [
    ("an empty message", b"", None),
    ("half a header", b"\x12\x34\x01\x00\x00\x01", None),
    ("a response", message(0x8180), None),
    ("no question", message(counts=(0, 0, 0, 0), body=b""), 1),
    ("two questions", message(counts=(2, 0, 0, 0), body=QUESTION * 2), 1),
    ("a question cut short", message(body=QUESTION[:-3]), 1),
    ("a name that points at itself", message(body=b"\xc0\x0c\0\x01\0\x01"), 1),
    ("a name that points forward", message(body=b"\xc0\x20\0\x01\0\x01" + bytes(20)), 1),
    ("a label of type 01", message(body=b"\x41a\0\0\x01\0\x01"), 1),
    ("a name of 300 bytes", message(body=b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\x01\0\x01"), 1),
    ("an answer in the question", message(counts=(1, 1, 0, 0), body=QUESTION + b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x01\x02\x03\x04"), 1),
    ("bytes behind the question", message(body=QUESTION + b"behind"), 1),
    ("two OPT records", message(counts=(1, 0, 0, 2), body=QUESTION + b"\0\0\x29\x04\xd0\0\0\0\0\0\0" * 2), 1),
    ("a notify", message(0x2100), 4),
]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_what_is_no_question_gets_an_error_or_nothing(lab, transport):
    for what, body, expected in NO_QUESTIONS:
        kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
        with lab.guest.socket(socket.AF_INET, kind) as client:
            client.settimeout(0.5 if expected is None else 30)
            client.connect((SERVER4, 53))
            client.send(body if transport == "udp" else struct.pack("!H", len(body)) + body)
            try:
                answer = client.recv(4096)[0 if transport == "udp" else 2:]
            except TimeoutError:
                answer = None
            if transport == "tcp" and answer == b"":
                answer = None  # the connection is closed
            seen = None if answer is None else answer[3] & 15
            assert seen == expected, f"{what} over {transport}"
            if answer is not None:
                assert answer[:2] == b"\x12\x34" and answer[2] & 0x80, what


def test_it_still_answers(lab):
    assert re.search(r"198\.51\.100\.10", dig(lab, "www.names.example", "A"))


@pytest.mark.parametrize("library", ["glibc", "musl"])
@pytest.mark.parametrize("server", [SERVER4, SERVER6])
def test_programs_fail_at_once_on_a_refused_name(lab, library, server):
    """And find an allowed one. The program has a resolv.conf of its own, with one server, as guests do."""
    program = find_program("look_up_" + library)
    resolv = os.path.join(lab.folder, "resolv.conf")
    with open(resolv, "w") as file:
        file.write(f"nameserver {server}\n")
    start = len(lab.sniffer.frames)

    def look_up(name):
        words = ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" /etc/resolv.conf && exec "$2" "$3"', "sh", resolv, program, name]
        with lab.guest.inside():
            return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.split()

    found = look_up("www.names.example")
    assert found[0] == "found" and {"198.51.100.10", "2001:db8:a::10"} <= set(found[2:]), found
    refused = [look_up("secret.elsewhere.example") for _ in range(5)]
    assert all(answer[0] == "no" for answer in refused), refused
    times = sorted(float(answer[1]) for answer in refused)
    print(f"{library} by {'IPv6' if ':' in server else 'IPv4'}: a refused name fails in {times[2]:.1f} ms (median of 5)")
    # A resolver that waits and tries again takes seconds.
    assert times[2] < 2000
    seen = [frame for frame in lab.sniffer.frames[start:] if b"elsewhere" in frame.lower()]
    assert not seen, "the refused name was seen beyond the uplink"
