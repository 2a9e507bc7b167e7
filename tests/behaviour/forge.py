"""Sends one packet that no kernel would let an honest process send. Runs as a plain file in a workload's namespace.

    forge.py MAC datagram SOURCE DESTINATION PORT
    forge.py MAC tunnel SOURCE DESTINATION
    forge.py MAC error SOURCE DESTINATION INNER_SOURCE INNER_DESTINATION SOURCE_PORT PORT MTU

``tunnel`` is a packet of protocol 4 (IPIP) without content. ``error`` is an ICMP error of a packet too big, about a UDP
datagram from INNER_SOURCE to INNER_DESTINATION. MAC is that of the node's end of the cable; packets go there whatever
the workload's routes are.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

IPIP, UDP = 4, 17


def checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def ip(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    if ":" in source:
        header = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64)
        return header + packed(source) + packed(destination) + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0)
    whole = header + packed(source) + packed(destination)
    return whole[:10] + struct.pack(">H", checksum(whole)) + whole[12:] + payload


def pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    end = struct.pack(">I3xB", length, protocol) if ":" in source else struct.pack(">xBH", protocol, length)
    return packed(source) + packed(destination) + end


def udp(source: str, destination: str, source_port: int, port: int) -> bytes:
    data = struct.pack(">HHHH", source_port, port, 8 + 4, 0) + b"felx"
    sum_ = checksum(pseudo(source, destination, UDP, len(data)) + data)
    return data[:6] + struct.pack(">H", sum_) + data[8:]


def too_big(source: str, destination: str, inner: bytes, mtu: int) -> bytes:
    if ":" in source:
        data = struct.pack(">BBHI", 2, 0, 0, mtu) + inner
        sum_ = checksum(pseudo(source, destination, 58, len(data)) + data)
    else:
        data = struct.pack(">BBHHH", 3, 4, 0, 0, mtu) + inner
        sum_ = checksum(data)
    return data[:2] + struct.pack(">H", sum_) + data[4:]


def send(mac: str, packet: bytes) -> None:
    kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    link.sendto(packet, ("eth0", kind, 0, 0, bytes.fromhex(mac.replace(":", ""))))


def main(mac: str, kind: str, source: str, destination: str, *rest: str) -> None:
    if kind == "datagram":
        send(mac, ip(source, destination, UDP, udp(source, destination, 40000, int(rest[0]))))
        return
    if kind == "tunnel":
        send(mac, ip(source, destination, IPIP, b""))
        return
    inner_source, inner_destination, source_port, port, mtu = rest
    datagram = udp(inner_source, inner_destination, int(source_port), int(port))
    about = ip(inner_source, inner_destination, UDP, datagram)
    icmp = 58 if ":" in source else 1
    send(mac, ip(source, destination, icmp, too_big(source, destination, about, int(mtu))))


main(*sys.argv[1:])
