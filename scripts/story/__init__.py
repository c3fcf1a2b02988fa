"""What the demo's story is made of: the node it happens on, the guests, and how it is told."""
