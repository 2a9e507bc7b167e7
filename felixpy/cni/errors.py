"""Errors as the CNI specification numbers them, with one sentence for people."""

from __future__ import annotations

from enum import IntEnum

from felixpy.plain_error import PlainError


class Code(IntEnum):
    """Codes of the specification (1.1, section 5), and from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    BAD_ENVIRONMENT = 4
    IO_FAILURE = 5
    UNDECODABLE = 6
    BAD_CONFIGURATION = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    LIMITED = 51
    NO_ADDRESS = 100
    KERNEL_REFUSED = 101
    NOT_PROGRAMMED = 102
    CHECK_FAILED = 103


class CniError(PlainError):
    """What a call failed with."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
