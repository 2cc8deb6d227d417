"""The page of the command line: every command of the click tree with all its options."""

import re
from collections.abc import Iterator

import click

from service.cli import app
from tools.docs.markdown import code, codes, page, table

NAME = "autoencoder"
_DEFAULT = re.compile(r"\s*\[default: (.*)\]$")


def command_page() -> str:
    parts = [_described(context) for context in contexts(click.Context(app, info_name=NAME))]
    return page(
        "Command line",
        "Exit code 0: done; 1: one sentence on standard error says why not; 2: wrong usage; 130: stopped by Ctrl-C.",
        *parts,
    )


def contexts(context: click.Context) -> Iterator[click.Context]:
    """A command and all below it, each in its context, whose ``command_path`` is what is typed."""
    yield context
    command = context.command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from contexts(click.Context(below, parent=context, info_name=name))


def _described(context: click.Context) -> str:
    command = context.command
    depth = context.command_path.count(" ")
    heading = f"{'#' * (2 + (depth > 1))} {context.command_path}"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [heading, f"```\n{usage}\n```", _help(command), _commands(context), _options(context)]
    return "\n\n".join(part for part in parts if part)


def _help(command: click.Command) -> str:
    return (command.help or "").replace("\b\n", "").strip()


def _commands(context: click.Context) -> str:
    command = context.command
    if not isinstance(command, click.Group):
        return ""
    rows = []
    for name in command.list_commands(context):
        path = f"{context.command_path} {name}"
        below = command.get_command(context, name)
        rows.append((f"[`{path}`](#{path.replace(' ', '-')})", below.get_short_help_str(200) if below else ""))
    return table(("Command", ""), rows)


def _options(context: click.Context) -> str:
    options = [option for option in context.command.params if isinstance(option, click.Option) and not option.hidden]
    return table(("Option", "Value", "Default", "Variable", "Meaning"), [_option(each, context) for each in options])


def _option(option: click.Option, context: click.Context) -> tuple[str, ...]:
    meaning, default = option.help or "", ""
    if stated := _DEFAULT.search(meaning):  # a default that only the code behind the option knows
        meaning, default = meaning[: stated.start()], stated[1]
    elif not option.is_flag and isinstance(option.default, str | int | float):
        default = code(option.default)
    names = codes((*option.opts, *option.secondary_opts))
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
    repeatable = " Repeatable." if option.multiple and "repeatable" not in meaning else ""
    return names, _value(option, context), default, codes(variables), meaning + repeatable


def _value(option: click.Option, context: click.Context) -> str:
    if option.is_flag or option.count:
        return ""
    if isinstance(option.type, click.Choice):
        return codes(option.type.choices)
    return code(option.make_metavar(context).strip("[]").lower())
