"""vm-bridge: a VM on the network of its pod, KubeVirt's bridge binding as a CNI plugin."""
