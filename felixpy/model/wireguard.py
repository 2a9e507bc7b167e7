"""Keys of WireGuard: 32 bytes, in base64 where people see them; the public key of a private one (RFC 7748). Pure.

The arithmetic is Python's and takes a time that depends on the key. That tells nobody anything: it is done when
an agent reads its key, which never leaves the node.
"""

from __future__ import annotations

import base64
import binascii

KEY_BYTES = 32

_P = 2**255 - 19
_A24 = 121665


def parse_key(text: str) -> bytes:
    """A key as ``wg`` and Calico write it.

    Raises:
        ValueError: it is none.
    """
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES or not any(key):
        raise ValueError("is not a WireGuard key, which is 32 bytes in base64")
    return key


def format_key(key: bytes) -> str:
    return base64.b64encode(key).decode()


def clamped(key: bytes) -> bytes:
    """A private key as the kernel keeps it (RFC 7748 §5)."""
    scalar = bytearray(key)
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    return bytes(scalar)


def public_key(private: bytes) -> bytes:
    """The public key of a private one: the Montgomery ladder of RFC 7748 §5 from the base point 9."""
    scalar = int.from_bytes(clamped(private), "little")
    x1, x2, z2, x3, z3, swapped = 9, 1, 0, 9, 1, 0
    for at in range(254, -1, -1):
        bit = scalar >> at & 1
        if swapped ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swapped = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % _P, b * b % _P, d * a % _P, c * b % _P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % _P, x1 * (da - cb) ** 2 % _P
        x2, z2 = aa * bb % _P, e * (aa + _A24 * e) % _P
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(KEY_BYTES, "little")
