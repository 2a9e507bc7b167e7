"""The nftables back-end: one table per family, written by nfnetlink transactions, no process started."""
