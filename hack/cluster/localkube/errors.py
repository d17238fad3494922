"""The error that every command of this package reports as one line with its remedy."""


class ClusterError(Exception):
    """Something the user can mend; `str()` names what is wrong, `remedy` what to do about it."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.remedy = remedy
