"""The benchmark harness: how long the network takes to follow an update, on a real kernel, beside comparators.

Run it with ``make bench`` or ``python -m bench``; ``bench/README.md`` says what it measures and how. Invariant: the
product never imports this package, and nothing here touches a network outside the namespaces that it makes.
"""
