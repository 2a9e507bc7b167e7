"""felixpy: a node dataplane agent for Linux. Endpoints are data in kernel maps, rules stand still."""

__version__ = "0.1.0"
