"""Sockets that a process brings into a filtered cgroup: they belong to the one they were made in, whose policy is another or none.
They are shut for good, and nothing that was made inside is taken for one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from cgroup_lab import SOURCE4, SOURCE6, place, workload  # noqa: F401
from lab import ALLOWED4, DENIED4, DENIED6
from machine import eventually
from ways import attempt
from workloads import Inhabitant

BEFORE = {
    "tcp-connected": ("tcp", True, 443), "udp-connected": ("udp", True, 9999), "udp-unconnected": ("udp", False, 9999),
    "udplite-unconnected": ("udplite", False, 9999), "raw-unconnected": ("raw:253", False, 0),
    "mptcp-connected": ("mptcp", True, 443), "packet": ("packet", False, 0),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", BEFORE)
def test_sockets_opened_before_joining_are_shut(place, workload, kind, family, record_property):
    """After the move a moment may pass; then nothing more is sent, whatever is tried. Connections to allowed addresses are of
    the same kind: they were made outside, nobody judges them, so they end too."""
    what, is_connected, port = BEFORE[kind]
    address = DENIED6 if family == 6 else DENIED4
    with Inhabitant(place.host, place.outside) as inhabitant:
        assert inhabitant.do("socket", 0, what, family).startswith("ok")
        if is_connected:
            assert inhabitant.do("connect", 0, address, port).startswith("ok")

        def send(mark):
            if what == "packet":
                frame = place.udp_frame(0, address, tail=0, source=SOURCE4 if family == 4 else SOURCE6)
                at = frame.index(place.marker(0))
                return inhabitant.do("frame", 0, "uplink", (frame[:at] + bytes.fromhex(mark)[:4]).hex())
            return inhabitant.do("send", 0, mark) if is_connected else inhabitant.do("sendto", 0, address, port, mark)

        assert place.arrives(send)[0], "before the move it arrives"
        moved = time.monotonic()
        workload.move_here(inhabitant.process.pid)
        eventually(lambda: not place.arrives(send)[0], f"{kind}: shut after the move", pause=0)
        record_property("seconds_until_shut", round(time.monotonic() - moved, 4))
        print(f"{kind}-{family}: shut within {1000 * (time.monotonic() - moved):.1f} ms of the move, one probe included")
        for _ in range(10):
            assert not place.arrives(send)[0]


def bring_in(place, workload, inhabitant):
    """Moves it, and returns once the daemon has shut what it brought."""
    workload.move_here(inhabitant.process.pid)
    eventually(lambda: f"(pid {inhabitant.process.pid}) brought into the cgroup" in place.filter.log(whole=True), "its socket is shut")


def frames_to(place, address, start):
    """Of any kind: a handshake is a way out too."""
    place.flush_host()
    wanted = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return [frame for frame in place.sniffer.frames[start:] if wanted in frame[14:54]]


REVIVED = [("tcp", 4), ("tcp", 6), ("tcp", 46), ("mptcp", 4), ("mptcp", 6), ("mptcp", 46)]
IDS = [f"{kind}-{family}" for kind, family in REVIVED]


@pytest.mark.parametrize("is_connected", [False, True], ids=["made-outside", "connected-outside"])
@pytest.mark.parametrize("kind, family", REVIVED, ids=IDS)
def test_a_socket_that_was_shut_cannot_be_revived(place, workload, kind, family, is_connected):
    """connect(AF_UNSPEC) makes a TCP socket as good as new, except that it is of the cgroup outside."""
    address = DENIED6 if family == 6 else DENIED4
    with Inhabitant(place.host, place.outside) as inhabitant:
        assert inhabitant.do("socket", 0, kind, family) == "ok 0"
        if is_connected:
            assert inhabitant.do("connect", 0, address, 443) == "ok 0"
            assert place.arrives(lambda mark: inhabitant.do("send", 0, mark))[0]
        bring_in(place, workload, inhabitant)
        place.flush_host()
        start = len(place.sniffer.frames)
        tried = [lambda mark: (inhabitant.do("disconnect", 0), inhabitant.do("connect", 0, address, 443), inhabitant.do("send", 0, mark)),
                 lambda mark: (inhabitant.do("disconnect", 0), inhabitant.do("fastopen", 0, address, 443, mark)),
                 lambda mark: (inhabitant.do("disconnect", 0), inhabitant.do("bind", 0, "0.0.0.0" if family == 4 else "::", 7100),
                               inhabitant.do("uring-connect", 0, address, 443), inhabitant.do("uring-send", 0, mark))]
        for way in tried:
            arrived, answers = place.arrives(way)
            assert not arrived, answers
            inhabitant.do("patience", 0, 300)  # the first one's two seconds have seen what is sent again
        assert frames_to(place, address, start) == []
    assert attempt(place, f"{kind}-{'mapped' if family == 46 else family}", address, place.outside)[0], "sockets outside go on"


@pytest.mark.parametrize("has_listened", [False, True], ids=["listens-inside", "listened-outside"])
@pytest.mark.parametrize("kind, family", REVIVED, ids=IDS)
def test_a_socket_that_was_shut_accepts_nobody(place, workload, kind, family, has_listened):
    """What it would accept is of the cgroup outside as well."""
    source, far = (SOURCE6, DENIED6) if family == 6 else (SOURCE4, DENIED4)

    def calls():
        with contextlib.closing(place.internet.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_STREAM)) as client:
            client.bind((far, 0))
            client.settimeout(1.5)
            try:
                client.connect((source, 7200))
                return True
            except TimeoutError:
                return False

    with Inhabitant(place.host, place.outside) as inhabitant:
        def listen():
            assert inhabitant.do("bind", 0, "0.0.0.0" if family == 4 else "::", 7200) == "ok 0"
            assert inhabitant.do("listen", 0) == "ok 0"

        assert inhabitant.do("socket", 0, kind, family) == "ok 0"
        if has_listened:
            listen()
            assert calls() and calls()
            assert inhabitant.do("accept", 0, 1).startswith("ok")  # the other one waits
        bring_in(place, workload, inhabitant)
        inhabitant.do("disconnect", 0)
        place.flush_host()
        start = len(place.sniffer.frames)
        if has_listened:
            assert inhabitant.do("listen", 0) in ("ok 0", "EINVAL")
            assert not place.arrives(lambda mark: inhabitant.do("send", 1, mark))[0], "what was accepted before"
        else:
            listen()
        assert not calls()
        assert [frame for frame in frames_to(place, far, start) if frame[:6] == place.gateway_mac] == []


# The socket of one thread: the process has another table, or the process's first thread has ended and has none.
BY_THREAD = """
import ctypes, errno, socket, sys, threading
address, how = sys.argv[1:]
CLONE_FILES, SYS_exit = 0x400, 60

def live():
    if how == "own-table":
        assert ctypes.CDLL(None).unshare(CLONE_FILES) == 0
    else:
        first.wait()
    own = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            own.sendto(bytes.fromhex(line.strip()), (address, 9999))
            print("ok", flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno], flush=True)

first = threading.Event()
thread = threading.Thread(target=live)
thread.start()
if how == "own-table":
    thread.join()
first.set()
ctypes.CDLL(None).syscall(SYS_exit, 0)
"""


@pytest.mark.parametrize("how", ["own-table", "first-has-ended"])
@pytest.mark.parametrize("address", [DENIED4, DENIED6])
def test_a_socket_that_only_one_thread_has_is_shut(place, workload, address, how):
    process = place.host.popen([sys.executable, "-c", BY_THREAD, address, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, bufsize=1)

    def send(mark):
        process.stdin.write(mark + "\n")
        return process.stdout.readline().strip()

    try:
        assert process.stdout.readline() == "ready\n"
        assert place.arrives(send)[0], "before the move it arrives"
        workload.move_here(process.pid)
        eventually(lambda: place.arrives(send) == (False, "EPIPE"), "shut after the move")
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_what_a_datagram_socket_had_corked_does_not_leave(place, workload):
    with Inhabitant(place.host, place.outside) as inhabitant:
        inhabitant.do("socket", 0, "udp", 4)
        assert inhabitant.do("cork", 0, 1) == "ok 0"

        def uncork(mark):
            inhabitant.do("sendto", 0, DENIED4, 9999, mark)
            return inhabitant.do("cork", 0, 0)

        assert place.arrives(uncork)[0]
        assert inhabitant.do("cork", 0, 1) == "ok 0"
        inhabitant.do("sendto", 0, DENIED4, 9999, place.marker(0xFFFD).hex())
        bring_in(place, workload, inhabitant)
        inhabitant.do("cork", 0, 0)
        place.flush_host()
        assert 0xFFFD not in place.arrived()


def test_a_process_that_leaves_no_room_for_the_tag_is_ended(place, workload):
    """The tag counts against the option memory of the socket, which is its owner's to fill."""
    with Inhabitant(place.host, place.outside) as inhabitant:
        inhabitant.do("socket", 0, "tcp", 4)
        assert inhabitant.do("hoard", 0).startswith("ok")
        workload.move_here(inhabitant.process.pid)
        eventually(lambda: inhabitant.process.poll() is not None, "it is ended")
        assert f"pid {inhabitant.process.pid} is ended for it" in place.filter.log(whole=True)


def test_a_socket_of_a_cgroup_that_is_gone_stays_shut(place, workload):
    former = place.outside.add_child("former")
    with Inhabitant(place.host, former) as inhabitant:
        assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
        bring_in(place, workload, inhabitant)
        former.remove()
        place.flush_host()
        start = len(place.sniffer.frames)
        inhabitant.do("disconnect", 0)
        assert inhabitant.do("connect", 0, DENIED4, 443) != "ok 0"
        assert frames_to(place, DENIED4, start) == []


def test_a_socket_opened_inside_goes_on_after_a_move_between_children(place, workload):
    """Only sockets from elsewhere are shut: a process that moves within its own attachment keeps its connections."""
    child = workload.add_child("inner")
    with Inhabitant(place.host, workload) as inhabitant:
        assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
        assert inhabitant.do("connect", 0, ALLOWED4, 443) == "ok 0"
        child.move_here(inhabitant.process.pid)
        for _ in range(20):
            assert inhabitant.do("send", 0, "00ff") == "ok 2"
            assert inhabitant.do("recv", 0, 60000) == "ok 00ff"
    child.remove()


# Connects, then starts a child in the cgroup as a manager does: fork, join, and after a while execute; or, told so, it stays as it
# is, or forks on for ever.
MANAGES = """
import os, socket, sys, time
door, address, mode = sys.argv[1:]
own = socket.create_connection((address, 443), 10)
if os.fork() == 0:
    joins = time.monotonic()
    with open(door, "w") as procs:
        procs.write("0")
    print(os.getpid(), flush=True)
    while mode == "forks":
        time.sleep(0.3)
        if os.fork() != 0:
            os._exit(0)
    time.sleep(60 if mode == "stays" else 0.4)
    print("late" if time.monotonic() - joins > 1 else "soon", flush=True)
    os.execvp("sleep", ["sleep", "60"])
for line in sys.stdin:
    try:
        own.sendall(b"ask")
        print(own.recv(3).decode() or "shut", flush=True)
    except OSError:
        print("shut", flush=True)
"""


@contextlib.contextmanager
def manager(place, workload, address, mode):
    """(its process, the child's pid)"""
    process = place.host.popen([sys.executable, "-c", MANAGES, f"{workload.path}/cgroup.procs", address, mode],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    child = int(process.stdout.readline())
    try:
        yield process, child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def asks(process):
    process.stdin.write("ask\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.mark.parametrize("address", [DENIED4, DENIED6])
def test_a_manager_keeps_its_connections_when_it_forks_into_the_cgroup(place, workload, address):
    assert any(keeps_its_connection(place, workload, address) for _ in range(20)), "a child that executes within a second"


def keeps_its_connection(place, workload, address):
    """False: the child came to execute later than the daemon waits, which shows nothing."""
    with manager(place, workload, address, "executes") as (process, child):
        if process.stdout.readline() == "late\n":
            return False
        for _ in range(15):
            assert asks(process) == "ask"
            time.sleep(0.1)
        assert f"(pid {child}) brought into the cgroup" not in place.filter.log(whole=True)
        return True


def test_a_child_that_does_not_execute_loses_them_after_a_moment(place, workload):
    with manager(place, workload, DENIED4, "stays") as (process, child):
        eventually(lambda: f"(pid {child}) brought into the cgroup" in place.filter.log(whole=True), "its socket is shut")


def test_a_chain_of_forks_does_not_hand_them_on(place, workload):
    """Whoever has it forks and ends, again and again: none of them is ever old, and none but the first moved."""
    cgroup = workload.add_child("chain")
    try:
        with manager(place, cgroup, DENIED4, "forks") as (process, _):
            eventually(lambda: asks(process) != "ask", "the socket is shut")
    finally:
        cgroup.remove()


def test_a_socket_of_a_cgroup_that_was_removed_is_still_the_workloads(place, workload):
    """It was made inside, where its policy holds for it as before."""
    first, second, third = (workload.add_child(name) for name in ("first", "second", "third"))
    with Inhabitant(place.host, first) as inhabitant:
        assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
        assert inhabitant.do("connect", 0, ALLOWED4, 443) == "ok 0"
        second.move_here(inhabitant.process.pid)
        first.remove()
        third.move_here(inhabitant.process.pid)
        witness_of_a_sweep(place, workload)
        assert inhabitant.do("send", 0, "00ff") == "ok 2"
        assert inhabitant.do("recv", 0, 60000) == "ok 00ff"
    second.remove()
    third.remove()


def witness_of_a_sweep(place, workload):
    """What moved before has been looked at: this one's socket is shut."""
    with Inhabitant(place.host, place.outside) as inhabitant:
        assert inhabitant.do("socket", 0, "udp", 4) == "ok 0"
        bring_in(place, workload, inhabitant)


MAKES_AND_REMOVES = """
import os, sys
print("busy", flush=True)
while True:
    os.mkdir(sys.argv[1])
    os.rmdir(sys.argv[1])
"""


def test_cgroups_that_come_and_go_do_not_cost_their_neighbours_a_socket(place, workload):
    neighbours = [workload.add_child(f"neighbour-{number}") for number in range(20)]
    churner = place.host.popen([sys.executable, "-c", MAKES_AND_REMOVES, f"{workload.path}/passing"], stdout=subprocess.PIPE)
    try:
        assert churner.stdout.readline() == b"busy\n"
        with Inhabitant(place.host, neighbours[0]) as inhabitant:
            assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
            assert inhabitant.do("connect", 0, ALLOWED4, 443) == "ok 0"
            for number in range(100):
                neighbours[number % 20].move_here(inhabitant.process.pid)
                time.sleep(0.01)
            assert inhabitant.do("send", 0, "00ff") == "ok 2"
            assert inhabitant.do("recv", 0, 60000) == "ok 00ff"
    finally:
        churner.kill()
        churner.wait()
        churner.stdout.close()
        with contextlib.suppress(OSError):
            os.rmdir(f"{workload.path}/passing")
    for neighbour in neighbours:
        neighbour.remove()


MOVES_TO_AND_FRO = """
import os, sys
doors = [os.open(f"{path}/cgroup.procs", os.O_WRONLY) for path in sys.argv[1:]]
print("moving", flush=True)
while True:
    for door in doors:
        os.write(door, b"0")
"""


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def has_sanitizer(pid):
    """Its allocator then keeps what was freed."""
    with open(f"/proc/{pid}/maps") as maps:
        libraries = maps.read()
    return "libasan" in libraries or "libtsan" in libraries


def test_a_flood_of_moves_does_not_keep_a_socket_open(place, workload):
    """Nor does it fill the daemon: whoever moves all the time is looked at again, not more often than once at a time."""
    left, right = workload.add_child("left"), workload.add_child("right")
    before = resident_kib(place.filter.process.pid)
    movers = [place.host.popen([sys.executable, "-c", MOVES_TO_AND_FRO, left.path, right.path], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for mover in movers:
            assert mover.stdout.readline() == b"moving\n"
        time.sleep(2)  # what had piled up by then would be looked at first
        for _ in range(5):
            with Inhabitant(place.host, place.outside) as inhabitant:
                assert inhabitant.do("socket", 0, "udp", 4) == "ok 0"
                bring_in(place, workload, inhabitant)
                assert not place.arrives(lambda mark: inhabitant.do("sendto", 0, DENIED4, 9999, mark))[0]
        assert has_sanitizer(place.filter.process.pid) or resident_kib(place.filter.process.pid) < before + 8192
    finally:
        for mover in movers:
            mover.kill()
            mover.wait()
            mover.stdout.close()
    left.remove()
    right.remove()


def test_a_socket_brought_in_while_no_daemon_ran_is_shut_by_the_next(place, workload):
    with Inhabitant(place.host, place.outside) as inhabitant:
        assert inhabitant.do("socket", 0, "tcp", 4) == "ok 0"
        place.filter.kill()
        workload.move_here(inhabitant.process.pid)
        place.filter.start()
        eventually(lambda: f"(pid {inhabitant.process.pid}) brought into the cgroup" in place.filter.log(whole=True), "its socket is shut")
        inhabitant.do("disconnect", 0)
        assert inhabitant.do("connect", 0, DENIED4, 443) != "ok 0"
