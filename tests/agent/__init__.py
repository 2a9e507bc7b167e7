"""The whole agent as its user meets it: real kernel in a private network, real Mosquitto, nothing replaced."""
