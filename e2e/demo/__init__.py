"""`make demo`: what the product does, on real parts, with a report at the end."""
