"""The latest resource of every key, and the indexes that say which objects depend on which. Pure."""
