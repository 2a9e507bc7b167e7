"""Resources as typed, frozen values, and the one place where untrusted text becomes such a value.

Nothing here does I/O, knows a kernel or an event loop.
"""
