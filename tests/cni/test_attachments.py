"""What hangs on the node: the last attachment of a pod counts, and followers hear of each change."""

from __future__ import annotations

from felixpy.cni.attachments import Attachment, LocalAttachments, PodKey
from felixpy.model.net import Net


def attachment(container: str, address: str, pod: str = "web") -> Attachment:
    return Attachment("default", pod, "", container, "cali0", (Net.parse(address),))


def test_a_follower_hears_of_what_is_there_and_of_what_comes_and_goes() -> None:
    told: list[PodKey] = []
    attachments = LocalAttachments()
    attachments.put(attachment("c1", "10.48.0.1"))
    attachments.follow(told.append)
    assert told == [("default", "web")]
    attachments.put(attachment("c1", "10.48.0.2"))
    attachments.remove("c1", "eth0")
    assert told == [("default", "web")] * 3
    assert attachments.remove("c1", "eth0") is None
    assert len(told) == 3
    assert len(attachments) == 0


def test_a_pod_that_was_made_anew_keeps_its_new_attachment_when_the_old_one_goes() -> None:
    attachments = LocalAttachments()
    attachments.put(attachment("c1", "10.48.0.1"))
    attachments.put(attachment("c2", "10.48.0.2"))
    assert attachments.of_pod("default", "web") == attachment("c2", "10.48.0.2")
    attachments.remove("c1", "eth0")
    assert attachments.of_pod("default", "web") == attachment("c2", "10.48.0.2")
    attachments.remove("c2", "eth0")
    assert attachments.of_pod("default", "web") is None


def test_without_kubernetes_there_is_no_pod_to_tell_of() -> None:
    told: list[PodKey] = []
    attachments = LocalAttachments()
    attachments.follow(told.append)
    attachments.put(Attachment("", "", "", "c1", "cali0", (Net.parse("10.48.0.1"),)))
    assert told == []
    assert [each.container_id for each in attachments] == ["c1"]
