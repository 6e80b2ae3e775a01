"""Files that are replaced wholly or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.files import write_whole


@pytest.mark.parametrize("text", ["", "one\ntwo\n", "one\r\ntwo", "grüße 🙂"], ids=["empty", "LF", "CRLF", "Unicode"])
def test_what_is_written_is_there_byte_for_byte_and_nothing_beside_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    for written in ("something longer that was there before", text):
        write_whole(path, written)
    assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "file.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file.json", "\ud800")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_whoever_has_the_old_file_open_reads_it_to_its_end(tmp_path: Path) -> None:
    write_whole(tmp_path / "file.json", "old")
    with (tmp_path / "file.json").open() as reader:
        write_whole(tmp_path / "file.json", "new")
        assert reader.read() == "old"
