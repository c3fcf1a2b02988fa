"""A virtual machine on a tap, as KubeVirt would start it: ready after two seconds, without KVM."""
