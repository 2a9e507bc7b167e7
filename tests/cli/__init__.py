"""The commands as processes: what they print, their exit codes, and what they do to kernel and broker."""
