"""The stream's protocol over MQTT, both sides: topics, manifests, snapshots for readers; the publisher for writers.

It ends where a message has become a topic, a payload and a state of completeness: what a resource means is the model's,
and who takes it is the source's (``felixpy/sources/mqtt.py``). Must never touch the kernel or the store.
"""
