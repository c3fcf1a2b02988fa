"""Where leases are kept: what is asked of a store, and the embedded one."""
