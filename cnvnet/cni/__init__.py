"""The CNI protocol: requests, results of every spec version, errors, the skeleton and delegation.

Nothing in this package knows what a plugin does, and nothing outside `cnvnet.launch.executable` writes to
stdout.
"""
