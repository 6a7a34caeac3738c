"""Training a compressed student to answer as its teacher does, while it is pruned."""
