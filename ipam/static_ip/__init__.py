"""static-ip: the address manager as a CNI plugin, and as a function for cnv-bridge."""
