"""What the agent says about itself: logs, metrics, health and the list of what is wrong with which object."""
