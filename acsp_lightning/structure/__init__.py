"""The network's structure: which channels go together, what to keep, how to cut. No Lightning."""
