"""What container runtimes attached to this node: a pod's interface and addresses, known before the API tells of them.

Whoever attaches (the CNI server) calls ``put`` and ``remove``; whoever turns attachments into endpoints follows. One
container has at most one attachment per interface name; a pod that was made anew may for a while have two, of which the
later one counts. Memory only: the journal that survives a restart is filled into it before anybody follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from felixpy.model.net import Net

PodKey = tuple[str, str]
"""Namespace and name of a pod."""

Follower = Callable[[PodKey], None]
"""Is told of a pod whose attachment is new, another one, or gone; must return at once."""


class Attachment(Struct, frozen=True):
    """One interface of one container. ``interface`` is the node's end of the veth, ``container_interface`` the other.

    ``addresses`` are /32 and /128; ``mac`` is that of the container's end; ``netns`` the path that the runtime gave;
    ``uid`` is the pod's, empty if the runtime did not tell it; ``namespace`` and ``pod`` are empty without Kubernetes.
    ``network`` is the name of the network configuration; ``created`` the time (RFC 3339, UTC) at which it was made.
    """

    namespace: str
    pod: str
    uid: str
    container_id: str
    interface: str
    addresses: tuple[Net, ...]
    mac: bytes | None = None
    netns: str = ""
    container_interface: str = "eth0"
    network: str = ""
    created: str = ""


class LocalAttachments:
    """The attachments of this node."""

    def __init__(self) -> None:
        self._by_container: dict[tuple[str, str], Attachment] = {}
        self._by_pod: dict[PodKey, dict[tuple[str, str], Attachment]] = {}
        self._followers: list[Follower] = []

    def __iter__(self) -> Iterator[Attachment]:
        return iter(self._by_container.values())

    def __len__(self) -> int:
        return len(self._by_container)

    def follow(self, follower: Follower) -> None:
        """Tell ``follower`` of every change from now on, and of every pod that is attached already."""
        self._followers.append(follower)
        for pod in list(self._by_pod):
            follower(pod)

    def get(self, container_id: str, container_interface: str) -> Attachment | None:
        return self._by_container.get((container_id, container_interface))

    def of_pod(self, namespace: str, pod: str) -> Attachment | None:
        """The attachment that counts for a pod: the one that was put last."""
        found = self._by_pod.get((namespace, pod))
        return next(reversed(found.values())) if found else None

    def put(self, attachment: Attachment) -> None:
        """Take an attachment, in place of an earlier one of the same container and interface name."""
        key = attachment.container_id, attachment.container_interface
        self.remove(*key, tell=False)
        self._by_container[key] = attachment
        if attachment.pod:
            pod = attachment.namespace, attachment.pod
            self._by_pod.setdefault(pod, {})[key] = attachment
            self._tell(pod)

    def remove(self, container_id: str, container_interface: str, *, tell: bool = True) -> Attachment | None:
        """Forget an attachment; returns what it was, None if there was none."""
        attachment = self._by_container.pop((container_id, container_interface), None)
        if attachment is not None and attachment.pod:
            pod = attachment.namespace, attachment.pod
            of_pod = self._by_pod[pod]
            del of_pod[container_id, container_interface]
            if not of_pod:
                del self._by_pod[pod]
            if tell:
                self._tell(pod)
        return attachment

    def _tell(self, pod: PodKey) -> None:
        for follower in self._followers:
            follower(pod)
