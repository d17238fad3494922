"""What the real engine is to be held against: rates said from a profile before anything was run."""
