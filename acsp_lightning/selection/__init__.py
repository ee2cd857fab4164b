"""Which channels stay: scores of channels, damage, cost, allocation."""
