"""The CNI plugin's other half: what container runtimes attached to this node, and the socket on which they ask."""
