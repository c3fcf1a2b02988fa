"""The network of virtual machines on Kubernetes: CNI plugins, an address manager and what both stand on."""

VERSION = "0.1.0"
