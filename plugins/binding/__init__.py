"""What the two bindings share: the placeholder link, the marks of ownership, rules, sysctls, taps."""
