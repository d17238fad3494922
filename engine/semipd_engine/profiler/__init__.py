"""``semipd-engine profile``: measures how long steps take, on this machine, with the workers that serve."""
