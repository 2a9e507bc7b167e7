"""The node's own start: its addresses, its router id, default pools, and what it publishes of itself."""
