"""The names of a cluster's Services, answered from its API: as much DNS as upstream's tests of Services need.

usage: dns.py ADDRESS      KUBECONFIG names the cluster. UDP and TCP, port 53; A, AAAA and CNAME.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from felixpy.kubernetes.access import Access, from_kubeconfig
from felixpy.kubernetes.client import Api, ApiError

ZONE = ["svc", "cluster", "local"]
A, CNAME, AAAA = 1, 5, 28
NO_SUCH_NAME, ANSWER = 3, 0x8580
TTL_SECONDS = 5

Record = tuple[int, bytes]


def encode(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.rstrip(".").split(".")) + b"\0"


def decode(data: bytes, at: int = 0) -> tuple[list[str], int]:
    """The labels of a name, and where it ends."""
    labels = []
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode().lower())
        at += 1 + data[at]
    return labels, at + 1


def record(address: str) -> Record:
    return (AAAA, socket.inet_pton(socket.AF_INET6, address)) if ":" in address else (A, socket.inet_aton(address))


async def addresses_of(api: Api, namespace: str, service: str, host: list[str]) -> list[str]:
    selector = {"labelSelector": f"kubernetes.io/service-name={service}"}
    slices = await api.get(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", **selector)
    endpoints = [endpoint for piece in slices["items"] for endpoint in piece["endpoints"] or ()]
    return [a for each in endpoints if not host or host[0] == each.get("hostname") for a in each["addresses"]]


async def lookup(api: Api, labels: list[str]) -> list[Record] | None:
    """The records of a name; None where there is no such name."""
    if labels[-3:] != ZONE or len(labels) not in (5, 6):
        return None
    host, (service, namespace) = labels[:-5], labels[-5:-3]
    try:
        spec: dict[str, Any] = (await api.get(f"/api/v1/namespaces/{namespace}/services/{service}"))["spec"]
        if spec["type"] == "ExternalName":
            return [(CNAME, encode(spec["externalName"]))]
        found = spec.get("clusterIPs", [])
        if found == ["None"] or host:
            found = await addresses_of(api, namespace, service, host)
    except ApiError:
        return None
    return [record(address) for address in dict.fromkeys(found)] or None


async def answer(api: Api, query: bytes) -> bytes:
    labels, end = decode(query, 12)
    kind = struct.unpack_from("!H", query, end)[0]
    records = await lookup(api, labels)
    if records and records[0][0] == CNAME:  # followed where it stays in the cluster
        records = await lookup(api, decode(records[0][1])[0]) or records
    wanted = [(k, data) for k, data in records or () if k in (kind, CNAME)]
    flags = ANSWER | (NO_SUCH_NAME if records is None else 0)
    reply = query[:2] + struct.pack("!HHHHH", flags, 1, len(wanted), 0, 0) + query[12 : end + 4]
    return reply + b"".join(b"\xc0\x0c" + struct.pack("!HHIH", k, 1, TTL_SECONDS, len(d)) + d for k, d in wanted)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, api: Api) -> None:
        self._api = api
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        task = asyncio.create_task(self._reply(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, data: bytes, peer: Any) -> None:
        self._transport.sendto(await answer(self._api, data), peer)


async def main() -> None:
    async with Api(Access(from_kubeconfig(Path(os.environ["KUBECONFIG"])))) as api:

        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            data = await answer(api, await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0]))
            writer.write(struct.pack("!H", len(data)) + data)
            await writer.drain()
            writer.close()

        await asyncio.get_running_loop().create_datagram_endpoint(lambda: Datagrams(api), local_addr=(sys.argv[1], 53))
        server = await asyncio.start_server(stream, sys.argv[1], 53)
        await server.serve_forever()


asyncio.run(main())
