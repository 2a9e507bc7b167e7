"""What it costs to list 5,000 pods and keep them, beside a bare list over aiohttp: processor time and memory.

usage: measure.py [PODS]      three processes: a server of ready-made pages, a bare client, the source's reflector
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import sys
import time
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

PAGE = 500


def pod(number: int) -> dict[str, Any]:
    containers = [
        {
            "name": f"c{i}",
            "image": "registry.k8s.io/pause:3.10",
            "ports": [{"name": f"http{i}", "containerPort": 8080 + i}],
            "env": [{"name": f"E{n}", "value": "x" * 20} for n in range(8)],
            "resources": {"requests": {"cpu": "10m"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}],
        }
        for i in range(2)
    ]
    fields = {f"f:{n}": {} for n in range(60)}
    v4, v6 = f"10.48.{number // 250}.{number % 250 + 1}", f"fd48::{number // 250:x}:{number % 250 + 1:x}"
    return {
        "metadata": {
            "name": f"web-{number:05}",
            "namespace": f"ns-{number % 40}",
            "uid": f"uid-{number}",
            "resourceVersion": str(number + 1),
            "labels": {"app": f"app-{number % 50}", "tier": "web", "pod-template-hash": "6d4b75cb6d"},
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": fields} for _ in range(3)],
        },
        "spec": {
            "nodeName": f"n{number % 100}",
            "serviceAccountName": "default",
            "containers": containers,
            "tolerations": [{"key": f"k{n}", "operator": "Exists"} for n in range(4)],
        },
        "status": {
            "phase": "Running",
            "podIP": v4,
            "podIPs": [{"ip": v4}, {"ip": v6}],
            "conditions": [
                {"type": f"T{n}", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"} for n in range(5)
            ],
        },
    }


async def serve(count: int, ready: Any) -> None:
    pages = [
        msgspec.json.encode(
            {
                "metadata": {"resourceVersion": "99999", "continue": str(n + PAGE) if n + PAGE < count else ""},
                "items": [pod(i) for i in range(n, min(n + PAGE, count))],
            }
        )
        for n in range(0, count, PAGE)
    ]

    async def answer(request: web.Request) -> web.StreamResponse:
        if "sendInitialEvents" in request.query:
            return web.Response(status=422)
        if "watch" in request.query:
            await asyncio.sleep(3600)
        return web.Response(
            body=pages[int(request.query.get("continue") or 0) // PAGE], content_type="application/json"
        )

    app = web.Application()
    app.router.add_get("/api/v1/pods", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ready.put((runner.addresses[0][1], sum(map(len, pages))))
    await asyncio.sleep(3600)


def used() -> tuple[float, float]:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return time.process_time(), int(file.read().split()[1]) * 4 / 1024


async def bare(port: int) -> int:
    seen, following = 0, ""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        while True:
            params = {"limit": str(PAGE), **({"continue": following} if following else {})}
            async with session.get("/api/v1/pods", params=params) as reply:
                page = msgspec.json.decode(await reply.read())
            seen += len(page["items"])
            following = page["metadata"]["continue"]
            if not following:
                return seen


async def reflected(port: int) -> int:
    from functools import partial

    from felixpy.kubernetes.access import Access, Identity
    from felixpy.kubernetes.client import Api
    from felixpy.kubernetes.pods import decode_pod
    from felixpy.kubernetes.reflector import Collection, Reflector

    done = asyncio.Event()

    class Follower:
        def changed(self, key: object, content: object) -> None: ...
        def failed(self, error: object) -> None: ...
        def recovered(self) -> None: ...
        def listed(self) -> None:
            done.set()

    api = Api(Access(Identity(f"http://127.0.0.1:{port}")))
    reflector = Reflector(api, Collection("/api/v1/pods", partial(decode_pod, prefix="cali")), Follower())
    global keep
    keep = reflector
    task = asyncio.create_task(reflector.run())
    await done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await api.close()
    return len(reflector.held)


def client(which: str, port: int, out: Any) -> None:
    import felixpy.kubernetes.client
    import felixpy.kubernetes.pods
    import felixpy.kubernetes.reflector  # noqa: F401

    cpu, memory = used()
    count = asyncio.run({"bare": bare, "reflector": reflected}[which](port))
    cpu_after, memory_after = used()
    out.put(
        (
            count,
            cpu_after - cpu,
            memory_after - memory,
            memory_after,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    context = multiprocessing.get_context("spawn")
    ready, out = context.Queue(), context.Queue()
    server = context.Process(target=_serve, args=(count, ready))
    server.start()
    port, size = ready.get()
    print(f"{count} pods, {size / count / 1024:.1f} KiB each")
    for which in ("bare", "reflector") * 3:
        process = context.Process(target=client, args=(which, port, out))
        process.start()
        got, cpu, more, now, peak = out.get()
        process.join()
        print(
            f"{which:10} {got} pods  {cpu:.2f} s of processor  +{more:.0f} MiB, {now:.0f} MiB, at most {peak:.0f} MiB"
        )
    server.kill()


def _serve(count: int, ready: Any) -> None:
    asyncio.run(serve(count, ready))


if __name__ == "__main__":
    main()
