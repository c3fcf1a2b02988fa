"""What a packet costs on its way: ours beside KubeVirt's wiring, the reference bridge and plain paths."""
