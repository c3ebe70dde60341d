"""What all tests of faults need."""

import gc

import pytest


@pytest.fixture(autouse=True)
def own_leftovers():
    """Orbax leaves coroutines that failed; they warn when they are collected, which must not be in a later test."""
    gc.freeze()  # what earlier tests keep is not looked through again: with the compiled programs that takes seconds
    yield
    gc.collect()
    gc.unfreeze()
