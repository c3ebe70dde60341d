"""The error for what the user can correct."""


class UsageError(ValueError):
    """Something that the user can mend; the message says what is wrong, what is accepted and what to do."""
