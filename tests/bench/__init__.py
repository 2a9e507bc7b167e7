"""The benchmark's own arithmetic, report and protocols; nothing is measured here."""
