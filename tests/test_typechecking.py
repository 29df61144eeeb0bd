"""The checks of nested functions, which are made once, hold for each function by itself."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError

import typechecking

Array = np.ndarray


def make(compute):
    @typechecking.jaxtyped(typechecker=typechecking.checked)
    def checked(x: Float[Array, "R"], y: Float[Array, "R"]) -> Float[Array, "R"]:
        return compute(x, y)

    return checked


def test_arguments_and_results_of_every_definition_are_checked():
    x = np.ones(3, np.float32)
    added, cut = make(lambda x, y: x + y), make(lambda x, y: x[:1])
    nested = make(lambda x, y: added(x, y) + added(y, y))
    assert nested(x, x).tolist() == [4.0] * 3
    for function in (added, nested):
        with pytest.raises(TypeCheckError, match="parameters"):
            function(x, x[:2])
    with pytest.raises(TypeCheckError, match="return value"):
        cut(x, x)
    assert added(x, x).tolist() == [2.0] * 3
