"""The hub: reads the Kubernetes API once, and publishes to a broker what nodes need of it.

reflectors ──objects──► content by topic, peers ──► mirror ──► broker ──► nodes
"""
