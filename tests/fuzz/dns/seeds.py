#!/usr/bin/python3
"""Writes well-formed messages into a folder, to begin fuzz_dns_message with: seeds.py FOLDER."""
import os
import sys

import dns.flags
import dns.message
import dns.rrset

NAMED = [("SRV", "1 2 3 x.example."), ("NAPTR", '1 2 "u" "s" "!x!y!" r.example.'), ("TXT", '"a" "b"'), ("PTR", "p.example."),
         ("NS", "n.example."), ("RP", "a.example. b.example."), ("PX", "1 a.example. b.example."), ("MX", "5 m.example.")]


def response(query, *answer, authority=(), additional=(), rcode=0):
    message = dns.message.make_response(query)
    message.flags |= dns.flags.RA
    for section, sets in ((message.answer, answer), (message.authority, authority), (message.additional, additional)):
        section.extend(dns.rrset.from_text(*one) for one in sets)
    message.set_rcode(rcode)
    return message


def messages():
    query = dns.message.make_query
    asked = query("Www.example.", "A", use_edns=0, payload=1232, want_dnssec=True)
    service = query("www.example.", "HTTPS", use_edns=0)
    below = query("a.old.example.", "AAAA")
    yield from (asked, service, below, query(".", "NS"), query("a.example.", "A", use_edns=1))
    yield response(asked, ("www.example.", 300, "IN", "CNAME", "cdn.example."),
                   ("cdn.example.", 60, "IN", "A", "192.0.2.1", "10.0.0.1"),
                   ("cdn.example.", 60, "IN", "RRSIG", "A 8 2 60 20300101000000 20200101000000 7 example. aaaa"))
    yield response(below, ("old.example.", 300, "IN", "DNAME", "new.example."),
                   ("a.old.example.", 0, "IN", "CNAME", "a.new.example."), ("a.new.example.", 60, "IN", "AAAA", "2001:db8::1"))
    yield response(service, ("www.example.", 300, "IN", "HTTPS", "1 svc.example. mandatory=ipv4hint alpn=h2 "
                             "ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1"))
    yield response(asked, authority=[("example.", 60, "IN", "SOA", "ns.example. host.example. 1 2 3 4 300")], rcode=3)
    yield response(asked, ("www.example.", 300, "IN", "A", *(f"192.0.2.{i}" for i in range(100))))
    for kind, text in NAMED:
        yield response(query("example.", kind), ("example.", 60, "IN", kind, text),
                       additional=[("x.example.", 60, "IN", "A", "192.0.2.1")])


os.makedirs(sys.argv[1], exist_ok=True)
for number, message in enumerate(messages()):
    with open(os.path.join(sys.argv[1], f"seed{number}"), "wb") as file:
        file.write(message.to_wire(max_size=65535))
