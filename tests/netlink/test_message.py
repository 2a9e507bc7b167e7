"""Messages and attributes: whatever the bytes, parsing ends; what was encoded comes back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from felixpy.netlink.message import attribute, attributes, parse_messages


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_parsing_ends_for_any_bytes(data: bytes) -> None:
    assert sum(16 + len(message.payload) for message in parse_messages(data)) <= len(data)
    assert sum(4 + len(value) for _, value in attributes(data)) <= len(data)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_attributes_decode_to_what_was_encoded(values: list[tuple[int, bytes]]) -> None:
    stream = b"".join(attribute(kind, value) for kind, value in values)
    assert len(stream) % 4 == 0
    assert list(attributes(stream)) == values
