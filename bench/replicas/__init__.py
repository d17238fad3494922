"""Replicas over a public trace whose rate rises and falls: our ratio, its rivals and fixed pools, all simulated."""
