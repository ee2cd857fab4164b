"""What layers do on validation batches: reading the batches, hooks, and what they gather."""
