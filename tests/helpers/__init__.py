"""What tests share: tiny networks and data, made-up records, and oracles."""
