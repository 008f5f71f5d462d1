"""Sends itself packets that bear a foreign source, in a namespace of its own: what any unprivileged process can do.

    forger.py PROTOCOL FOREIGN HERE FOREIGN_PORT PORT IFINDEX

Run in a filtered cgroup as nobody. It makes a user and a network namespace, is HERE in it, opens a socket at PORT and sends to
that as FOREIGN: over the loopback device with IFINDEX 0, else over a device with that ifindex. Says "taken" when the socket has
been given the packet.
"""

import ctypes
import os
import socket
import subprocess
import sys
import time

from packets import forged

NEWUSER, NEWNET = 0x10000000, 0x40000000


def enter_own_namespace(here, ifindex):
    """The device to send by, and the address of the one that takes it."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(NEWUSER | NEWNET) != 0:
        sys.exit("no namespace of its own: " + os.strerror(ctypes.get_errno()))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open("/proc/self/" + name, "w") as file:
            file.write(text)
    pair = f"""
        link add out0 type veth peer name in0 index {ifindex}
        link set out0 up
        link set in0 up address 02:00:00:00:00:05
        """ if ifindex else ""
    device = "in0" if ifindex else "lo"
    batch = f"""
        link set lo up
        {pair}
        addr add {here} dev {device} {"nodad" if ":" in here else ""}
        route add default dev {device}
        """
    subprocess.run(["ip", "-6" if ":" in here else "-4", "-batch", "-"], check=True, text=True,
                   input="\n".join(line.strip() for line in batch.splitlines()))
    for where in ("all", device):
        with open(f"/proc/sys/net/ipv4/conf/{where}/rp_filter", "w") as file:
            file.write("0")
    return ("out0", bytes([2, 0, 0, 0, 0, 5])) if ifindex else ("lo", bytes(6))


def main():
    protocol, foreign, here = sys.argv[1:4]
    foreign_port, port, ifindex = map(int, sys.argv[4:7])
    device, mac = enter_own_namespace(here, ifindex)
    family = socket.AF_INET6 if ":" in here else socket.AF_INET
    if protocol == "echo":
        taker = socket.socket(family, socket.SOCK_RAW, 58 if family == socket.AF_INET6 else 1)
    else:
        taker = socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        taker.bind((here, port))
        if protocol == "tcp":
            taker.listen()
    taker.settimeout(0.1)
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.bind((device, 0))
    kind = b"\x86\xdd" if family == socket.AF_INET6 else b"\x08\x00"
    for _ in range(100):  # a device that has just come up takes a while to be used
        sender.send(mac + bytes(6) + kind + forged(protocol, foreign, here, foreign_port, port))
        if is_taken(taker, protocol, family):
            print("taken")
            return
    sys.exit("not taken")


def is_taken(taker, protocol, family):
    if protocol == "tcp":  # its handshake cannot end
        time.sleep(0.05)
        with open("/proc/net/tcp6" if family == socket.AF_INET6 else "/proc/net/tcp") as connections:
            return any(line.split()[3] == "03" for line in connections)  # SYN_RECV
    try:
        return bool(taker.recv(2048))
    except TimeoutError:
        return False


if __name__ == "__main__":
    main()
