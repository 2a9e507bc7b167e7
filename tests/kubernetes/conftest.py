"""Tests with the real API server are those of `make test-api`, which builds it."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("FELIXPY_TEST_API") else ["api"]
