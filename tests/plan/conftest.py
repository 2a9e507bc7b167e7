"""The same network as the agent's tests have."""

from tests.agent.conftest import node

__all__ = ["node"]
