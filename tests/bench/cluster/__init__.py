"""Leases of a cluster beside whereabouts: a real API server, agents with tokens of their own.

Its modules need what the end-to-end tests need, which a bench of one node does without.
"""

# What scripts/bench --cluster measures, as its command line names it, and what it runs.
NAMES = ("pod", "vm", "crowd", "full", "idle", "fleet", "unguarded")
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "whereabouts")
