"""The guests that the agent serves: which they are, the packet loop, and what they asked for."""
