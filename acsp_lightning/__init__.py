"""Structured pruning that decides by itself how many channels to keep, inside a Lightning job."""
