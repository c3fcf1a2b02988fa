"""The address manager: leases, pools, stores, and the executable that speaks CNI."""
