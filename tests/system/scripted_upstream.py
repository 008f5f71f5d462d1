"""An upstream that says what the test tells it to, right or wrong: UDP and TCP port 53 of an address in the lab's internet.

    upstream = ScriptedUpstream(lab.internet, "198.19.0.2")
    upstream.script["chain.names.example"] = lambda query: [rrset...] or a dns.message.Message or bytes or None (says nothing)
"""

import contextlib
import selectors
import socket
import struct
import threading

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset


def records(*lines):
    """RRsets from lines of "owner ttl type data"."""
    sets = []
    for line in lines:
        owner, ttl, kind, data = line.split(None, 3)
        if kind in ("CNAME", "DNAME"):
            data += "."
        sets.append(dns.rrset.from_text(owner + ".", int(ttl), "IN", kind, data))
    return sets


class ScriptedUpstream(threading.Thread):
    def __init__(self, namespace, address):
        super().__init__(daemon=True)
        self.script = {}  # name, lower case: function of the query (a dns.message.Message), with `.transport`
        self.faults = []  # what the script itself got wrong
        self.asked = []  # (name, type, transport) in order
        self.udp = namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, 53))
        self.tcp = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.tcp.bind((address, 53))
        self.tcp.listen(64)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.udp, selectors.EVENT_READ, self._datagram)
        self.selector.register(self.tcp, selectors.EVENT_READ, self._accept)
        self.running = True
        self.start()

    def run(self):
        while self.running:
            for key, _ in self.selector.select(0.1):
                with contextlib.suppress(OSError):
                    try:
                        key.data(key.fileobj)
                    except (ValueError, dns.exception.DNSException) as error:
                        self.faults.append(repr(error))  # the script's own: a test that relied on silence would prove nothing

    def stop(self):
        self.running = False
        self.join(5)
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()

    def names_asked(self):
        return [name for name, _, _ in self.asked]

    def _datagram(self, sock):
        data, client = sock.recvfrom(4096)
        for answer in self._answer(data, "udp"):
            sock.sendto(answer, client)

    def _accept(self, listener):
        connection, _ = listener.accept()
        connection.settimeout(2)
        self.selector.register(connection, selectors.EVENT_READ, self._stream)

    def _stream(self, connection):
        head = connection.recv(2, socket.MSG_WAITALL)
        if len(head) < 2:
            self.selector.unregister(connection)
            connection.close()
            return
        data = connection.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL)
        for answer in self._answer(data, "tcp"):
            connection.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, data, transport):
        """What goes back, in order: none, one, or several messages."""
        query = dns.message.from_wire(data, ignore_trailing=True)
        query.transport = transport
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append((name, dns.rdatatype.to_text(question.rdtype), transport))
        said = self.script.get(name, lambda _: [])(query)
        if said is None:
            return []
        if isinstance(said, list) and said and isinstance(said[0], (bytes, dns.message.Message)):
            return [self._bytes(part, query) for part in said]
        if isinstance(said, (bytes, dns.message.Message)):
            return [self._bytes(said, query)]
        return [self._bytes(reply(query, answer=said), query)]

    @staticmethod
    def _bytes(said, query):
        if isinstance(said, bytes):
            return said
        wire = said.to_wire(max_size=65535)
        if query.transport == "udp" and len(wire) > 1232:
            said.answer, said.authority, said.additional = [], [], []
            said.flags |= dns.flags.TC
            wire = said.to_wire()
        return wire


def reply(query, answer=(), authority=(), additional=(), rcode=0, flags=0):
    """A response to `query` with these RRsets, as they are: also what no server would say."""
    message = dns.message.make_response(query)
    message.flags |= dns.flags.RA | flags
    message.set_rcode(rcode)
    message.answer, message.authority, message.additional = list(answer), list(authority), list(additional)
    return message
