"""Pure calculation: (resource, context) -> entries of kernel tables. No I/O, no clock, no event loop."""
