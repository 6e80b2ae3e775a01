"""A file of keys that cannot be read for a moment: a key that was taken back must not stay valid for it."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest.mock import Mock

import pytest

from service.keys import LOOK_SECONDS, KeyRing, new_key
from tests.clock import hand_turned


def test_a_file_that_cannot_be_read_for_a_moment_is_read_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, path = hand_turned(monkeypatch, "service.keys"), tmp_path / "keys.toml"
    (ours, our_digest), (theirs, their_digest) = new_key(), new_key()
    entry = '[[key]]\nname = "support"\nsha256 = "{}"\nscopes = ["classify"]\n'
    path.write_text(entry.format(our_digest))
    ring = KeyRing(path)
    path.write_text(entry.format(their_digest) + "# ours was taken back")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_text", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
        clock.now += LOOK_SECONDS
        assert ring.find(ours) is not None
    clock.now += LOOK_SECONDS
    assert ring.find(ours) is None
    assert ring.find(theirs) is not None
