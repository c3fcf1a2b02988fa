"""From the process that a runtime starts to the agent that runs its call, or to the call itself."""
