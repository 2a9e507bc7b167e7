"""The same network and broker as the agent's tests have."""

from tests.agent.conftest import broker, node

__all__ = ["broker", "node"]
