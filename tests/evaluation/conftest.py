"""The run folder that tests evaluate."""

import pytest


@pytest.fixture
def run(copied):
    return copied
