"""Real traffic through restarts, drift, moving links and other writers: only what the design allows is lost."""
