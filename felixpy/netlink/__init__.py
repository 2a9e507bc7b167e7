"""Netlink: one transport, encoders and decoders per message family. Knows messages, not what they are for."""
