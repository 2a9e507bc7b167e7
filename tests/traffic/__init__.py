"""Real traffic through restarts, drift, moving links and other writers: nothing is lost that the design does not allow."""
