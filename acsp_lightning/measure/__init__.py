"""Measurements of a network: complexity, latency, accuracy."""
