"""cnv-bridge: ports of a Linux bridge for pods and virtual machines, a superset of the reference plugin."""
