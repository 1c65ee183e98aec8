"""What a user can do wrong."""


class UserError(Exception):
    """A mistake of the user: shown as one line, without a traceback, with exit code 2."""
