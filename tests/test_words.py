"""The names that client and server share."""

from dataclasses import fields
from typing import get_args

import pytest

from service.client import AsyncClient, Client
from service.client.calls import KINDS
from service.client.results import Result
from service.words import CONTRIBUTIONS, ERROR_MAPS, OPERATIONS, RESULT_COLUMNS, Operation, OperationName


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_client_has_each_operation(operation: Operation) -> None:
    """A method by its name in both clients, and a result object with its arrays."""
    assert hasattr(Client, operation.name)
    assert hasattr(AsyncClient, operation.name)
    kind = next(kind for name, kind in KINDS.items() if name == operation.name)
    own = {field.name for field in fields(kind)} - {field.name for field in fields(Result)}
    assert kind.operation is operation
    assert {name for name, _ in operation.results} <= own


def test_operations_can_be_named() -> None:
    """The type of an operation's name lists all of them."""
    assert get_args(OperationName) == tuple(operation.name for operation in OPERATIONS)


def test_each_result_has_a_column() -> None:
    """Tables name every result that an answer can have."""
    results = {name for operation in OPERATIONS for name, _ in operation.results}
    assert set(RESULT_COLUMNS) == results | {CONTRIBUTIONS, ERROR_MAPS}
