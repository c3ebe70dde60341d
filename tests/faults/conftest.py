"""What all tests of faults need."""

import gc

import pytest


@pytest.fixture(autouse=True)
def own_leftovers():
    """Orbax leaves coroutines that failed; they warn when they are collected, which must not be in a later test."""
    yield
    gc.collect()
