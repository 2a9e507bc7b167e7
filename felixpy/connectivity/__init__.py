"""Pods that try what a cluster's network has to do: behind ``felixpy connectivity``."""
