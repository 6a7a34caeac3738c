"""Knowledge distillation: a compressed student is pruned while it learns from its teacher."""
