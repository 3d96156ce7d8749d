"""A finished run that the tests of the report page share."""

import pytest
from helpers import shared
from pages import OPTIONS

import train


@pytest.fixture(scope="session")
def reported_run(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train.main(
        [*OPTIONS, "--data_path", str(whole), "--logger_name", str(folder), "--log_step", "4"]
    )
    return shared(folder)
