"""Where core finds the resident: one name, so that core need not import the resident."""

RESIDENT_SOCKET = "resident.sock"
"""File name inside the run directory."""
