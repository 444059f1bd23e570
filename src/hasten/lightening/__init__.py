"""Train lighter networks to replace a model: pruned ones, and other architectures it teaches."""
