"""``semipd.io/v1alpha1``: the specification and the status of a SemiPDService."""
