"""Which channels to keep: scores of channels, damage, cost, allocation."""
