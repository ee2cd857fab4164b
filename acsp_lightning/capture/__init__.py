"""Activations on validation batches: reading the batches, forward hooks, statistics."""
