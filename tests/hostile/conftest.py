"""The run folder that refused commands leave as it is."""

import pytest
from damage import contents

from lib.system import files
from lib.system.run_folder import RunFolder
from lib.training import run_start


@pytest.fixture
def untouched(tmp_path):
    """The folder of a run that was interrupted; it must be afterwards as it was."""
    folder = tmp_path / "run"
    folder.mkdir()
    with files.lock(folder / run_start.LOCK), RunFolder(folder).update() as manifest:
        run = dict(id="1", log="1", saved=False, resumed_from=None, replaces=[])
        manifest.update(files=["metrics.json", "train.txt"], run=run, log="1")
    (folder / "train.txt").write_text("of an earlier run\n")
    (folder / "metrics.json").write_text("{}\n")
    before = contents(folder)
    yield folder
    assert contents(folder) == before
