"""``semipd doctor``: can this machine serve, and what keeps it from doing so? Looks; changes nothing."""
