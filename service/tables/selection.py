"""Which columns and rows of a table to use, and what the user says its columns are."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.errors import DataError
from service.schemas import ColumnType, Frozen

CONDITION = re.compile(r"(?P<column>.+?)\s*(?P<unequal>!?)=\s*(?P<value>.*)", re.DOTALL)


class ColumnChoice(Frozen):
    """The user's choice for one column; None keeps what the file says."""

    type: ColumnType | None = None
    may_be_missing: bool | None = None


class _SchemaFile(Frozen):
    columns: dict[str, ColumnChoice]


@dataclass(frozen=True, slots=True)
class Condition:
    """Rows where a column has a value, or has another one; a missing value is neither."""

    column: str
    value: str
    equal: bool = True


@dataclass(frozen=True, slots=True)
class Selection:
    columns: Sequence[str] = ()
    """Names to use, in this order; all when empty."""
    drop: Sequence[str] = ()
    where: Sequence[Condition] = ()
    """All must hold."""
    choices: Mapping[str, ColumnChoice] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.columns or self.drop or self.where or self.choices)

    def type_of(self, name: str) -> ColumnType | None:
        return self.choices[name].type if name in self.choices else None

    def names_of(self, names: Sequence[str]) -> list[str]:
        """The names to use of those that a file has.

        Raises:
            DataError: a name is not there, or none is left.
        """
        for name in (*self.columns, *self.drop, *self.choices, *(condition.column for condition in self.where)):
            if name not in names:
                known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
                raise DataError(f'There is no column "{name}"; the columns are {known}.')
        selected = [name for name in (self.columns or names) if name not in set(self.drop)]
        if len(set(selected)) < len(selected):
            raise DataError("A column is asked for twice.")
        if not selected:
            raise DataError("No column is left to train on.")
        return selected


def make_selection(
    *, columns: Sequence[str] = (), drop: Sequence[str] = (), where: Sequence[str] = (), schema: Path | None = None
) -> Selection:
    """From what is given on the command line.

    Args:
        where: conditions such as ``label=normal`` and ``port!=0``.
        schema: a JSON or TOML file, see ``docs/tables.md``.

    Raises:
        DataError: a condition or the file is not understood.
    """
    conditions = []
    for text in where:
        found = CONDITION.fullmatch(text.strip())
        if found is None:
            raise DataError("A condition on rows is COLUMN=VALUE or COLUMN!=VALUE.")
        conditions.append(Condition(found["column"], found["value"].strip(), equal=not found["unequal"]))
    choices = {} if schema is None else _read_choices(schema)
    return Selection(tuple(columns), tuple(drop), tuple(conditions), choices)


def _read_choices(path: Path) -> dict[str, ColumnChoice]:
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return _SchemaFile.model_validate(content).columns
    except OSError as error:
        raise DataError(f"The schema file {path.name} cannot be read.") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise DataError(f"The schema file {path.name} is not valid at {place}: {first['msg']}.") from error
    except ValueError as error:
        raise DataError(f"The schema file {path.name} is neither JSON nor TOML (.toml).") from error
