"""The Kubernetes API: where it is and who we are, a reflector, and its objects as resources of ours."""
