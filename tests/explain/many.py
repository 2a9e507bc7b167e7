"""Answers many questions of ``felixpy explain`` in one process: JSON lines in, JSON lines out."""

from __future__ import annotations

import asyncio
import json
import sys

from felixpy.explain.facts import read_kernel
from felixpy.explain.report import as_json, make_packet
from felixpy.explain.walk import explain
from felixpy.model.net import FAMILIES


async def main() -> None:
    questions = [json.loads(line) for line in sys.stdin]
    for family in FAMILIES:
        async with read_kernel(family) as kernel:
            for question in questions:
                packet = make_packet(*question["packet"])
                if packet.family is family:
                    packet.iif = question["in"]
                    verdict = explain(kernel.node, packet)
                    print(json.dumps({"id": question["id"], **as_json(packet, verdict, packet.iif, kernel.missing)}))


if __name__ == "__main__":
    asyncio.run(main())
