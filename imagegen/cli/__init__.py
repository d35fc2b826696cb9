"""The command line: `imagegen COMMAND`, with a module for each command."""

from __future__ import annotations


class CommandError(Exception):
    """A command cannot do what was asked; the message is one line for the user."""
