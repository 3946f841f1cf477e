"""Errors that a person can mend."""


class UserError(Exception):
    """Wrong input: the message says what was wrong, where, and what would be right."""
