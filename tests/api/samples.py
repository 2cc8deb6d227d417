"""Rows that the models of the trained store know, and small things that the tests of the routes share."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.conftest import COLUMNS, table_rows

OPERATIONS = ("encode", "reconstruct", "denoise", "anomaly-score")


@cache
def digits(count: int) -> NDArray[np.float32]:
    """Real digits (count, 8, 8), each pixel from 0 to 16."""
    from sklearn.datasets import load_digits

    images: NDArray[np.float32] = load_digits().images[:count].astype(np.float32)
    return images


def payments(count: int, *, seed: int = 7) -> NDArray[np.float32]:
    """Ordinary rows (count, 6) of the model ``payments`` that it was not trained on."""
    return table_rows(count, seed=seed)


def named(rows: NDArray[np.float32]) -> list[dict[str, float]]:
    """Rows of ``payments`` as objects by column."""
    return [dict(zip(COLUMNS, map(float, row), strict=True)) for row in rows]


def in_columns(rows: NDArray[np.float32]) -> dict[str, list[float]]:
    return {name: rows[:, at].tolist() for at, name in enumerate(COLUMNS)}


def assert_problem(response: Any, status: int) -> dict[str, Any]:
    """Check that an answer is a problem as API.md has it, and give it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) <= 4096
    problem: dict[str, Any] = response.json()
    assert set(problem) - {"errors"} == {"type", "title", "status", "detail", "request_id"}
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"] != ""
    assert problem["title"]
    assert problem["detail"]
    errors = problem.get("errors", [])
    assert len(errors) <= 10
    assert all(set(error) == {"row", "column", "problem"} for error in errors)
    assert bool(errors) == (status == 422)
    assert "Traceback" not in response.text
    assert "/tmp" not in response.text
    return problem
