"""nftables: chains as text, elements as netlink messages, and how to see whether either has changed."""
