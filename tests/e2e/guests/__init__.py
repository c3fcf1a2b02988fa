"""QEMU guests behind the binding plugins, on nodes that have nothing else."""
