"""Everything that knows a Trainer."""
