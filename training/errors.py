"""Errors that the user can correct."""


class UserError(Exception):
    """Invalid input; the message says what is wrong, where, and what is valid."""
