"""The tests. A package of its own, for a `tests` package among the installed ones would hide a folder without this."""
