"""Ordinary traffic: servers that echo, and small clients that tell what a program of the workload would see."""

import contextlib
import errno
import os
import selectors
import socket
import struct
import subprocess
import threading

TCP_PORTS = [80, 443, 5432]
UDP_PORTS = [53, 443, 8050, 9999]


class EchoServers(threading.Thread):
    """Answers on every address of a namespace, by the address that was asked: TCP and UDP, IPv4 and IPv6."""

    def __init__(self, namespace, tcp=TCP_PORTS, udp=UDP_PORTS):
        super().__init__(daemon=True)
        self.selector = selectors.DefaultSelector()
        self.connections = 0
        for port in tcp:
            listener = namespace.socket(socket.AF_INET6, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, 23, 64)  # TCP_FASTOPEN
            listener.bind(("::", port))
            listener.listen(512)
            listener.setblocking(False)
            self.selector.register(listener, selectors.EVENT_READ, self._accept)
        for port in udp:
            for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                server = namespace.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                else:
                    server.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
                server.bind((any_address, port))
                server.setblocking(False)
                self.selector.register(server, selectors.EVENT_READ, self._answer)
        self.wake_read, self.wake_write = os.pipe()
        self.selector.register(self.wake_read, selectors.EVENT_READ, None)
        self.start()

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            self.connections += 1
            self.selector.register(connection, selectors.EVENT_READ, self._echo)

    def _echo(self, connection):
        try:
            data = connection.recv(65536)
            if data:
                connection.sendall(data)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.selector.unregister(connection)
        connection.close()

    def _answer(self, server):
        with contextlib.suppress(OSError):
            data, ancillary, _, asker = server.recvmsg(65536, 256)
            reply = []
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_IP:  # in_pktinfo {ifindex, spec_dst, addr}: answer from addr
                    reply = [(level, kind, struct.pack("I", 0) + value[8:12] + bytes(4))]
                elif level == socket.IPPROTO_IPV6:
                    reply = [(level, kind, value[:16] + struct.pack("I", 0))]
            server.sendmsg([data], reply, 0, asker)

    def run(self):
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)

    def stop(self):
        os.write(self.wake_write, b"x")
        self.join()
        for key in list(self.selector.get_map().values()):
            if key.data is not None:
                key.fileobj.close()
        os.close(self.wake_read)
        os.close(self.wake_write)
        self.selector.close()


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp_exchange(namespace, address, port, data=b"hello", timeout=3.0):
    """"ok", or the name of the error: what a client of the workload sees."""
    client = namespace.socket(family_of(address), socket.SOCK_STREAM)
    with client:
        client.settimeout(timeout)
        try:
            client.connect((address, port))
            client.sendall(data)
            return "ok" if client.recv(len(data)) == data else "other data"
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))


def udp_exchange(namespace, address, port, data=b"hello", timeout=1.0, tries=3):
    client = namespace.socket(family_of(address), socket.SOCK_DGRAM)
    with client:
        client.settimeout(timeout)
        result = "timeout"
        for _ in range(tries):
            try:
                client.connect((address, port))
                client.send(data)
                return "ok" if client.recv(len(data)) == data else "other data"
            except TimeoutError:
                continue
            except OSError as error:
                result = errno.errorcode.get(error.errno, str(error))
        return result


def ping(namespace, address, timeout=1, count=1):
    with namespace.inside():
        done = subprocess.run(["ping", "-n", "-q", "-c", str(count), "-W", str(timeout), address], capture_output=True)
    return done.returncode == 0
