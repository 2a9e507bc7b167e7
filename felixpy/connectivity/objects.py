"""What ``felixpy connectivity`` makes: a namespace, servers, a Service, a policy, and pods that try. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PORT = 8080
LABEL = "felixpy-connectivity"

# Answers on every address with the one that asked; /ready says that it listens.
SERVER = f"""\
import http.server, socket
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = self.client_address[0].removeprefix("::ffff:").encode()
        self.send_response(200); self.send_header("Content-Length", str(len(text))); self.end_headers()
        self.wfile.write(text)
    def log_message(self, *words): pass
Server(("::", {PORT}), Handler).serve_forever()
"""

# Tries every target until it is as expected or its time is over; one JSON line each, and an end mark.
CLIENT = """\
import json, os, ssl, threading, time, urllib.error, urllib.request
lines = threading.Lock()
context = ssl._create_unverified_context()
def once(url):
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return True, answer.read(200).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return True, f"HTTP {error.code}"
    except Exception as error:
        return False, str(getattr(error, "reason", error))
def work(target):
    until, right = time.monotonic() + target["seconds"], 0
    while True:
        reached, said = once(target["url"])
        right = right + 1 if reached == target["reached"] else 0
        if right >= target["times"] or time.monotonic() > until:
            break
        time.sleep(0.3)
    with lines:
        print(json.dumps({"name": target["name"], "reached": reached, "said": said}), flush=True)
threads = [threading.Thread(target=work, args=(one,)) for one in json.loads(os.environ["TARGETS"])]
[one.start() for one in threads]
[one.join() for one in threads]
print("end", flush=True)
"""


class Target(NamedTuple):
    """A connection to try: what people call it, where it goes, and whether it has to be answered."""

    name: str
    url: str
    reached: bool = True

    def wire(self, seconds: float) -> dict[str, Any]:
        """For the client; what must not be answered is tried three times in a row."""
        return {**self._asdict(), "seconds": seconds, "times": 1 if self.reached else 3}


def url(address: str, port: int = PORT, scheme: str = "http") -> str:
    return f"{scheme}://{f'[{address}]' if ':' in address else address}:{port}/"


def namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {LABEL: "true"}}}


def _pod(name: str, node: str, image: str, labels: Mapping[str, str], script: str, **container: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {LABEL: "true", **labels}},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "main", "image": image, "command": ["python3", "-c", script], **container}],
        },
    }


def server(name: str, node: str, image: str, role: str) -> dict[str, Any]:
    """A pod that answers; ``role`` is what policies select it by."""
    probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    return _pod(name, node, image, {"role": role}, SERVER, readinessProbe=probe)


def client(name: str, node: str, image: str, role: str, targets: Sequence[Target], seconds: float) -> dict[str, Any]:
    """A pod that tries the targets and ends."""
    text = json.dumps([target.wire(seconds) for target in targets])
    return _pod(name, node, image, {"role": role}, CLIENT, env=[{"name": "TARGETS", "value": text}])


def service(name: str, role: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {LABEL: "true"}},
        "spec": {
            "selector": {"role": role},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"port": PORT, "targetPort": PORT}],
        },
    }


def policy(name: str, role: str, allowed: str) -> dict[str, Any]:
    """Only pods of the role ``allowed`` reach those of ``role``."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "podSelector": {"matchLabels": {"role": role}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": allowed}}}], "ports": [{"port": PORT}]}],
        },
    }
