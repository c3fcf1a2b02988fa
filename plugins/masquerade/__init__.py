"""masquerade: a VM behind its pod's addresses, KubeVirt's masquerade binding as a CNI plugin."""
