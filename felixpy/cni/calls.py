"""What a container runtime wants done, done as a whole or not at all.

    ADD: addresses → pair of interfaces → journal, endpoint → the kernel carries it, rules included → answer
    DEL: endpoint gone → pair gone → addresses given back → journal

Invariant: an ADD that fails, or is cancelled, leaves nothing; a DEL succeeds whatever is there, and one of what nobody
knows costs nothing: no request to anybody, no line in the log. What an attachment means is decided elsewhere
(``Programming``): here nothing is written to rules, sets or routes of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import structlog

from felixpy.cni import pair
from felixpy.cni.attachments import Attachment, LocalAttachments
from felixpy.cni.debts import Debts, handle, handle_of
from felixpy.cni.endpoint import container_key, endpoint_of, interface_name
from felixpy.cni.errors import CniError, Code
from felixpy.cni.journal import Identity, Journal, identity
from felixpy.cni.programming import Node, NodeState, NotProgrammed, Pods, Programming
from felixpy.cni.request import Call
from felixpy.cni.result import add_result, addresses_in
from felixpy.cni.wishes import PodWishes
from felixpy.ipam.assignment import Addresses, NoAddress, Wanted
from felixpy.kubernetes.names import ENDPOINT, endpoint_key
from felixpy.model.net import Net
from felixpy.model.resources import ResourceKey, Update, WorkloadEndpoint
from felixpy.netlink.namespaces import in_thread, is_network_namespace, is_own_namespace, uncancelled

log = structlog.get_logger("felixpy")

PROGRAMMED_SECONDS = 30.0
"""For so long an ADD waits for the kernel, and for the stream to be known; then the runtime is asked to try again."""
_NO_FLOATING: Final = (
    "cni.projectcalico.org/floatingIPs: the network configuration does not allow it; "
    'give it "feature_control": {"floating_ips": true}'
)


class Calls:
    """Attachments of this node, made and unmade on request. ``open`` before the source runs."""

    def __init__(
        self,
        node: Node,
        attachments: LocalAttachments,
        journal: Journal,
        addresses: Addresses,
        programming: Programming,
        pods: Pods | None = None,
    ) -> None:
        self._node = node
        self.attachments = attachments
        self._journal = journal
        self._addresses = addresses
        self._programming = programming
        self._pods = pods
        self._by_interface: dict[str, Attachment] = {}
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._adding: dict[Identity, asyncio.Task[Any]] = {}
        self._debts = Debts(addresses, journal, lambda one: attachments.get(*one) is not None)

    async def open(self) -> None:
        """Take what an earlier agent made: attachments whose interfaces stand; the rest is cleared away.

        Raises:
            JournalError: the journal cannot be used.
            OSError: the kernel refused.
        """
        content = await asyncio.to_thread(self._journal.load)
        standing = await asyncio.to_thread(pair.marked)
        gone = []
        for attachment in content.attachments.values():
            self._addresses.adopt(handle_of(attachment), attachment.addresses)
            link = standing.pop(alias_of(attachment), None)
            if link is not None and link.name == attachment.interface:
                self._remember(attachment)
            else:
                gone.append(attachment)
        for alias, link in standing.items():  # made, and never written down: their ADD was not answered
            await in_thread(partial(pair.remove, link.name, alias))
        for attachment in gone:
            await self._debts.give_back(attachment)
        if content.attachments or standing:
            log.info(
                "attachments of an earlier run", stand=len(self.attachments), gone=len(gone), unfinished=len(standing)
            )

    async def close(self) -> None:
        """After the last call."""
        await self._debts.close()
        self._journal.close()

    async def do(self, call: Call, namespace: int) -> bytes:
        """One call, and the text of its answer. ``namespace``: descriptor of the container's, or -1.

        Raises:
            CniError
        """
        try:
            match call.command:
                case "ADD":
                    return await self._add_once(call, namespace)
                case "DEL":
                    await self._delete(call)
                case "CHECK":
                    await self._check(call, namespace)
                case "GC":
                    await self._collect(call)
                case "STATUS":
                    self._status(call)
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"{call.command} failed: {error.strerror or error}") from None
        return b""

    # --- ADD -------------------------------------------------------------------------------------------------

    async def _add_once(self, call: Call, namespace: int) -> bytes:
        """ADD; a DEL of the same container ends it."""
        if not is_network_namespace(namespace):
            raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS={call.netns!r} is not a network namespace")
        if is_own_namespace(namespace):
            raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS={call.netns!r} is the node's own network namespace")
        key = call.container_id, call.container_interface
        before = self._adding.get(key)
        if before is not None:
            before.cancel()
            await asyncio.wait((before,))
        task: asyncio.Task[bytes] = asyncio.create_task(self._add(call, namespace))
        self._adding[key] = task
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait((task,))
            raise
        finally:
            if self._adding.get(key) is task:
                del self._adding[key]

    async def _add(self, call: Call, namespace: int) -> bytes:
        started = time.perf_counter()
        interface = self._interface_of(call)
        async with self._alone(interface):
            for old in (
                self.attachments.get(call.container_id, call.container_interface),
                self._by_interface.get(interface),
            ):
                if old is not None:  # an ADD whose answer was lost, or the pod's earlier container
                    await self._detach(old)
            async with _all_or_nothing() as undo:
                attachment = await self._attach(call, interface, namespace, undo)
        milliseconds = round((time.perf_counter() - started) * 1000, 1)
        log.info(
            "attached", container=call.container_id, pod=_pod_name(attachment), interface=interface,
            addresses=[str(one) for one in attachment.addresses], ms=milliseconds,
        )  # fmt: skip
        return add_result(call.configuration.version, attachment, self._mtu(call))

    async def _attach(self, call: Call, interface: str, namespace: int, undo: contextlib.AsyncExitStack) -> Attachment:
        wishes = await self._wishes(call)
        wanted = self._wanted(call, wishes)
        addresses = await self._assign(wanted)
        undo.push_async_callback(_quietly, lambda: self._addresses.release(wanted.handle, addresses))
        mac = wishes.mac or call.configuration.mac or pair.new_mac()
        is_pod = self._is_pod(call)
        attachment = Attachment(
            namespace=call.namespace if is_pod else "",
            pod=call.pod if is_pod else "",
            uid=call.uid if is_pod else "",
            container_id=call.container_id,
            interface=interface,
            addresses=addresses,
            mac=mac,
            netns=call.netns,
            container_interface=call.container_interface,
            network=call.configuration.network,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        )
        wanted_pair = pair_of(attachment, self._mtu(call))
        undo.push_async_callback(_quietly, lambda: in_thread(partial(pair.remove, interface, wanted_pair.alias)))
        await in_thread(partial(pair.make, wanted_pair, namespace))
        key = self._key_of(attachment)
        undo.push_async_callback(_quietly, lambda: self._journal.forget(identity(attachment)))
        written = asyncio.create_task(self._journal.add(attachment))
        undo.push_async_callback(_over, written)
        with self._programming.until_up(key, partial(_is_of, attachment)) as up:
            undo.callback(self._forget, attachment)
            self._remember(attachment)
            await self._until(up)
        try:
            await written
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"the attachment cannot be kept: {error.strerror or error}") from None
        return attachment

    async def _wishes(self, call: Call) -> PodWishes:
        if self._pods is None or not self._is_pod(call):
            return PodWishes()
        wishes = await self._pods.wishes(call.namespace, call.pod, call.uid)
        if wishes.refused:
            code = Code.TRY_AGAIN if wishes.later else Code.UNSUPPORTED_FIELD
            raise CniError(code, f"pod {call.namespace}/{call.pod}: {wishes.refused}")
        if wishes.floating and not call.configuration.floating:
            raise CniError(Code.UNSUPPORTED_FIELD, f"pod {call.namespace}/{call.pod}: {_NO_FLOATING}")
        return wishes

    def _wanted(self, call: Call, wishes: PodWishes) -> Wanted:
        ipam = call.configuration.ipam
        requested = wishes.addresses or call.configuration.addresses
        families = {*(wishes.families or ipam.families), *(address.family for address in requested)}
        attributes = {"node": self._node.name}
        if call.pod:
            attributes |= {"namespace": call.namespace, "pod": call.pod}
        return Wanted(
            handle=handle(call.configuration.network, call.container_id, call.container_interface),
            families=tuple(sorted(families)),
            requested=requested,
            ranges=ipam.ranges,
            pools={**ipam.pools, **wishes.pools},
            attributes=attributes,
            namespace_labels=wishes.namespace_labels,
        )

    async def _assign(self, wanted: Wanted) -> tuple[Net, ...]:
        try:
            async with asyncio.timeout(PROGRAMMED_SECONDS):
                await self._programming.ready()
        except TimeoutError:
            reason = self._programming.state().cannot or "it does not know its addresses yet"
            raise CniError(Code.TRY_AGAIN, f"this node is not ready: {reason}") from None
        try:
            return await self._addresses.assign(wanted)
        except NoAddress as error:
            raise CniError(Code.TRY_AGAIN if error.later else Code.NO_ADDRESS, str(error)) from None

    async def _until(self, up: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(PROGRAMMED_SECONDS):
                await up
        except NotProgrammed as error:
            code = Code.TRY_AGAIN if error.later else Code.NOT_PROGRAMMED
            raise CniError(code, f"the node does not carry this workload: {error}") from None
        except TimeoutError:
            reason = self._programming.state().cannot or "the kernel does not carry this workload yet"
            raise CniError(Code.TRY_AGAIN, f"{reason}; after {PROGRAMMED_SECONDS:.0f} s it is undone") from None

    # --- DEL, GC ---------------------------------------------------------------------------------------------

    async def _delete(self, call: Call) -> None:
        key = call.container_id, call.container_interface
        adding = self._adding.get(key)
        if adding is not None:
            adding.cancel()
            await asyncio.wait((adding,))
        attachment = self.attachments.get(*key)
        if attachment is not None:
            await self._detach_alone(attachment)

    async def _detach_alone(self, attachment: Attachment) -> None:
        async with self._alone(attachment.interface):
            if self.attachments.get(*identity(attachment)) is attachment:
                await uncancelled(asyncio.ensure_future(self._detach(attachment)))

    async def _detach(self, attachment: Attachment) -> None:
        """Undo an attachment. What cannot be done now is owed, or found at the next start; the call succeeds.

        Raises:
            CniError: the kernel keeps the interface.
        """
        self._forget(attachment)
        try:
            await in_thread(partial(pair.remove, attachment.interface, alias_of(attachment)))
        except OSError as error:
            self._remember(attachment)
            reason = f"the interface {attachment.interface} cannot be removed: {error.strerror or error}"
            raise CniError(Code.KERNEL_REFUSED, reason) from None
        await self._debts.give_back(attachment)
        log.info(
            "detached", container=attachment.container_id, pod=_pod_name(attachment), interface=attachment.interface
        )

    async def _collect(self, call: Call) -> None:
        """Remove what of this network the runtime does not name; what fails stops nothing else."""
        configuration = call.configuration
        valid = configuration.valid or frozenset()
        failed = []
        for attachment in unnamed(self.attachments, configuration.network, valid):
            try:
                await self._detach_alone(attachment)
            except CniError as error:
                failed.append(str(error))
        if failed:
            raise CniError(Code.KERNEL_REFUSED, "; ".join(failed))

    # --- CHECK, STATUS ---------------------------------------------------------------------------------------

    async def _check(self, call: Call, namespace: int) -> None:
        attachment = self.attachments.get(call.container_id, call.container_interface)
        if attachment is None:
            reason = f"container {call.container_id} has no interface {call.container_interface} of this agent"
            raise CniError(Code.UNKNOWN_CONTAINER, reason)
        if not is_network_namespace(namespace) or is_own_namespace(namespace):
            raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS={call.netns!r} is no container's network namespace")
        found = []
        if call.configuration.previous is not None:
            told = addresses_in(call.configuration.previous)
            found += [f"the runtime knows nothing of {one}" for one in attachment.addresses if one not in told]
            found += [f"{one} is not this container's" for one in sorted(told.difference(attachment.addresses))]
        try:
            found += await in_thread(partial(pair.differences, pair_of(attachment), namespace))
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"the container cannot be looked at: {error.strerror or error}") from None
        up, reason = self._programming.is_up(self._key_of(attachment))
        if not up:
            found.append(f"the node does not carry it: {reason}")
        if found:
            raise CniError(Code.CHECK_FAILED, "; ".join(found))

    def _status(self, call: Call) -> None:
        exhausted = self._addresses.exhausted(call.configuration.ipam.families)
        if error := status_error(self._programming.state(), exhausted):
            raise error

    # --- what is attached ------------------------------------------------------------------------------------

    def _remember(self, attachment: Attachment) -> None:
        self._by_interface[attachment.interface] = attachment
        self.attachments.put(attachment)
        if self._tells_of(attachment):
            key = self._key_of(attachment)
            endpoint = endpoint_of(key, self._node.name, attachment)
            self._programming.update(Update(key, endpoint, received_ns=time.monotonic_ns()))

    def _forget(self, attachment: Attachment) -> None:
        if self.attachments.remove(*identity(attachment)) is None:
            return
        if self._by_interface.get(attachment.interface) is attachment:
            del self._by_interface[attachment.interface]
        if self._tells_of(attachment):
            self._programming.update(Update(self._key_of(attachment), None, received_ns=time.monotonic_ns()))

    def _tells_of(self, attachment: Attachment) -> bool:
        """Whether the endpoint comes from here: of what is no pod, and of pods if no API is followed any more."""
        return self._pods is None or not attachment.pod

    def _is_pod(self, call: Call) -> bool:
        """Whether the API tells of this interface: it knows one per pod."""
        return bool(self._pods and call.namespace and call.pod and call.container_interface == ENDPOINT)

    def _interface_of(self, call: Call) -> str:
        parts = (call.namespace, call.pod) if self._is_pod(call) else (call.container_id, call.container_interface)
        return interface_name(self._node.interface_prefix(), *parts)

    def _key_of(self, attachment: Attachment) -> ResourceKey:
        if attachment.pod:
            return endpoint_key(self._node.name, attachment.namespace, attachment.pod)
        return container_key(self._node.name, *identity(attachment))

    def _mtu(self, call: Call) -> int:
        return call.configuration.mtu or self._node.mtu()

    @contextlib.asynccontextmanager
    async def _alone(self, interface: str) -> AsyncIterator[None]:
        """One call at a time for one interface."""
        lock, users = self._locks.get(interface, (asyncio.Lock(), 0))
        self._locks[interface] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[interface]
            if users > 1:
                self._locks[interface] = lock, users - 1
            else:
                del self._locks[interface]


@contextlib.asynccontextmanager
async def _all_or_nothing() -> AsyncIterator[contextlib.AsyncExitStack]:
    """What is pushed to the stack is done, the last first, if the body fails or is cancelled."""
    undo = contextlib.AsyncExitStack()
    try:
        yield undo
    except BaseException:
        await uncancelled(asyncio.ensure_future(undo.aclose()))
        raise


async def _quietly(step: Callable[[], Awaitable[object]]) -> None:
    """One step of undoing, which must not keep the others from being done: what is left is found at the next start."""
    try:
        await step()
    except (NoAddress, OSError) as error:
        log.warning("a step of an ADD that failed cannot be undone", reason=str(error))


async def _over(task: asyncio.Task[None]) -> None:
    """Wait for the end of a task, whatever it is."""
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()


def status_error(state: NodeState, exhausted: str) -> CniError | None:
    """What STATUS says of a node; ``exhausted``: why no address can be had, empty if one can."""
    if cannot := state.cannot or exhausted:
        return CniError(Code.NOT_AVAILABLE, cannot)
    return CniError(Code.LIMITED, state.limited) if state.limited else None


def unnamed(attachments: Iterable[Attachment], network: str, valid: Container[Identity]) -> list[Attachment]:
    """What of a network is not among what the runtime says that lives."""
    return [one for one in attachments if one.network == network and identity(one) not in valid]


def pair_of(attachment: Attachment, mtu: int = 0) -> pair.Pair:
    return pair.Pair(
        attachment.interface, attachment.container_id, attachment.container_interface,
        attachment.mac or b"", attachment.addresses, mtu,
    )  # fmt: skip


def alias_of(attachment: Attachment) -> str:
    return pair.alias_of(attachment.container_id, attachment.container_interface)


def _is_of(attachment: Attachment, endpoint: WorkloadEndpoint) -> bool:
    """Whether an endpoint is that of an attachment, and not of the pod's earlier container."""
    return endpoint.interface == attachment.interface and set(attachment.addresses) <= set(endpoint.addresses)


def _pod_name(attachment: Attachment) -> str:
    return f"{attachment.namespace}/{attachment.pod}" if attachment.pod else ""
