"""The real engine, held against what was said of it from a profile before it was run (`make bench-slo`)."""
