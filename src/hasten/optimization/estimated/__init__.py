"""The judge for an absent device: accuracy judged on this host, speed estimated by its tools."""
