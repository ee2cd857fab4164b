"""What a network costs and how good it is: complexity, latency, accuracy."""
