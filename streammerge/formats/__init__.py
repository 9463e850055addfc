"""bytes → Checkpoint: how weights lie in files."""
