"""Resources as typed, frozen values, and the one place where untrusted text becomes such a value.

Nothing here knows a kernel or an event loop; only ``documents`` reads files.
"""
