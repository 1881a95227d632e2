"""The error a user can mend."""


class KSGenError(Exception):
    """Says what went wrong, what was got and what to do; shown to the user as it is.

    A caller's bug is a `ValueError` instead.
    """
