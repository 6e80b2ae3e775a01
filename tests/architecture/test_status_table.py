"""The table from errors to statuses is complete and says each thing once."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

import pytest
from grpc import StatusCode

from service import errors
from service.api.status import TABLE
from service.pb.fantail.v1.error_reason_pb2 import ErrorReason
from tests.architecture.source import sources

TREES = (
    errors.InvalidRequestError,
    errors.UnknownClassifierError,
    errors.ClassifierWithheldError,
    errors.EngineError,
)
NOT_IN_TABLE = {"ERROR_REASON_UNSPECIFIED", "ERROR_REASON_DEFECT"}


def family(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


def leaves(root: type[Exception]) -> list[type[Exception]]:
    return [each for each in family(root) if not each.__subclasses__()]


@pytest.mark.parametrize("error", [leaf for root in TREES for leaf in leaves(root)], ids=lambda error: error.__name__)
def test_every_error_that_can_reach_a_caller_has_a_status(error: type[errors.FantailError]) -> None:
    assert error in TABLE


def test_every_error_raised_by_the_code_has_a_status_or_stops_the_start() -> None:
    raised = {
        node.func.id
        for source in sources("service")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    ours = {each for each in family(errors.FantailError) if each.__name__ in raised}
    assert errors.UnknownClassifierError in ours
    assert {each for each in ours if not issubclass(each, errors.StartError)} <= set(TABLE)


def test_no_error_of_starting_has_a_status() -> None:
    assert [error for error in TABLE if issubclass(error, errors.StartError)] == []


def test_every_reason_stands_for_one_error() -> None:
    assert sorted(ErrorReason.Name(reason) for _, reason in TABLE.values()) == sorted(
        set(ErrorReason.keys()) - NOT_IN_TABLE
    )


@pytest.mark.parametrize(("error", "code"), [(e, code) for e, (code, _) in TABLE.items()], ids=lambda v: str(v))
def test_the_callers_mistakes_and_ours_have_different_codes(error: type[errors.FantailError], code: StatusCode) -> None:
    is_callers = issubclass(
        error, errors.InvalidRequestError | errors.UnknownClassifierError | errors.UnknownRevisionError
    )
    assert (code in {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND}) == is_callers


def test_the_tree_drawn_in_the_module_names_every_error() -> None:
    drawn = inspect.getdoc(errors) or ""
    assert [each.__name__ for each in family(errors.FantailError) if each.__name__ not in drawn] == []
