"""The lab (two nodes, workloads and an outside host in private network namespaces) and the demo that runs in it.

Nothing here touches the machine's own network: a namespace lives as long as the process that made it, and every
process ends with the one that started it.
"""
