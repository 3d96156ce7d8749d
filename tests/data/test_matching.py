"""Images of a split JSON, matched with the lines of TSV files."""

import numpy as np
import pytest
from tsv_inputs import (
    NAMES,
    PICTURES,
    PLACES,
    check_values,
    convert_there,
    features,
    write_json,
    write_tsv,
)


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path)
    return tmp_path


def test_names_of_all_letters_are_matched_and_written(folder):
    tail = " caf\u00e9\u202f\U0001f600"
    write_json(folder, filename=lambda picture: f"{picture}{tail}.jpg")
    write_tsv(
        folder,
        name=lambda picture: repr(
            f"{picture}{tail.replace(chr(0xE9), 'e' + chr(0x301))}.jpg".encode()
        ),
    )
    assert convert_there(folder) == 0
    check_values(folder, rtol=0)
    written = (folder / "mine_precomp" / "test_ids.txt").read_text(encoding="utf-8")
    assert written == "".join(f"{picture}{tail}\n" for picture in PLACES["test"])


def test_a_running_number_is_used_when_it_is_asked_for(folder, capsys):
    write_tsv(folder, pictures=PICTURES, name=lambda picture: str(PICTURES.index(picture)))
    assert convert_there(folder, "--match", "imgid") == 0
    check_values(folder, of=lambda picture: PICTURES[NAMES.index(picture)])
    assert "matched by imgid: 30 images" in capsys.readouterr().out
    assert convert_there(folder, "--match", "cocoid", "--overwrite") == 2
    assert "(by cocoid)" in (error := capsys.readouterr().err) and "the JSON has no cocoid" in error


def test_contradicting_fields_are_decided_by_the_user(folder):
    write_tsv(folder)
    write_json(folder, cocoid=lambda picture: 229 - picture)
    assert convert_there(folder, "--match", "cocoid") == 0
    found = np.load(folder / "mine_precomp" / "train_ims.npy")
    np.testing.assert_array_equal(found, [features(229 - picture) for picture in NAMES[:20]])


def test_file_names_that_look_like_running_numbers_are_warned_about(folder, capsys):
    numbers = {picture: number for number, picture in enumerate(NAMES)}
    write_json(folder, filename=lambda picture: f"{numbers[picture]}.jpg")
    for name, pictures, warned in (
        (lambda picture: str(numbers[picture]), NAMES, 1),
        (lambda picture: str(numbers[picture]), NAMES[::-1], 1),
        (lambda picture: f"{numbers[picture]}.jpg", NAMES, 0),
    ):
        write_tsv(folder, name=name, pictures=pictures)
        assert convert_there(folder, "--overwrite") == 0
        found = capsys.readouterr().out.count(
            "warning: the names in the TSV files are the numbers from 0 on"
        )
        assert found == warned
