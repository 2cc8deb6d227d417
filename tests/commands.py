"""The command line's own parser, for commands that documents and manifests show."""

from typing import Any

from service.cli import app


def check_command(words: list[str]) -> dict[str, Any]:
    """Have the command line parse what follows ``autoencoder``; its parameters."""
    group: Any = app
    name, *arguments = words
    while hasattr(group.commands[name], "commands"):
        group = group.commands[name]
        name, *arguments = arguments
    with group.commands[name].make_context(name, arguments) as context:
        return dict(context.params)
