"""Marks of single cases of a parametrised test."""

from typing import Any

import pytest


def slow(*values: Any, **options: Any) -> Any:
    """Return one case of a test that runs with `-m slow` alone, where a quicker case stands for it."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)
