"""The folder of a device's firmware: what is pruned, and what never is."""

import fcntl
import os
import stat

import pytest

from srup.fetch import MemoryFetcher
from srup.images import ACTIVATED, ACTIVATING, CURRENT, file_digest, mark, point, prune

IMAGES = [f"{number:x}" * 64 for number in range(1, 9)]
"""Digests, the oldest first."""


@pytest.fixture
def folder(tmp_path):
    for age, name in enumerate(IMAGES):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, (age, age))
    return tmp_path


def there(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("keep", [1, 2, 5, 8, 100])
def test_the_newest_are_kept(folder, keep):
    prune(folder, keep)
    assert there(folder) == set(IMAGES[-keep:])


def test_what_is_wanted_stays_and_counts(folder):
    prune(folder, 2, [IMAGES[0], "f" * 64])
    assert there(folder) == {IMAGES[0]}
    prune(folder, 2)
    assert there(folder) == {IMAGES[0]}


@pytest.mark.parametrize("link", [CURRENT, "mine"])
def test_what_a_link_names_stays(folder, link):
    point(folder, link, IMAGES[0])
    prune(folder, 2)
    assert there(folder) == {IMAGES[0], IMAGES[-1], link}
    assert (folder / link).read_bytes() == IMAGES[0].encode()
    prune(folder, 1)
    assert there(folder) == {IMAGES[0], link}


@pytest.mark.parametrize("name", [ACTIVATED, ACTIVATING])
def test_what_a_mark_names_stays(folder, name):
    mark(folder, name, IMAGES[0])
    prune(folder, 2)
    assert there(folder) == {IMAGES[0], IMAGES[-1], name}
    mark(folder, name, None)
    prune(folder, 1)
    assert there(folder) == {IMAGES[-1]}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"junk\n", b"../../etc/passwd"])
def test_a_mark_that_is_damaged_names_nothing(folder, content):
    (folder / ACTIVATED).write_bytes(content)
    prune(folder, 1)
    assert there(folder) == {IMAGES[-1], ACTIVATED}


def test_several_may_name_more_than_are_kept(folder):
    point(folder, CURRENT, IMAGES[0])
    mark(folder, ACTIVATED, IMAGES[1])
    mark(folder, ACTIVATING, IMAGES[2])
    prune(folder, 1)
    assert there(folder) == {*IMAGES[:3], CURRENT, ACTIVATED, ACTIVATING}


def test_other_files_are_left_alone(folder, tmp_path):
    others = ["README", "a" * 63, "A" * 64, "a" * 64 + ".bak", "a" * 65, "x.part"]
    for name in others:
        (folder / name).write_text("mine")
    (folder / ("a" * 64)).mkdir()
    (folder / ("b" * 64 + ".part")).mkdir()
    os.mkfifo(folder / ("c" * 64 + ".part"))
    prune(folder, 1)
    assert there(folder) == {IMAGES[-1], *others, "a" * 64, "b" * 64 + ".part", "c" * 64 + ".part"}


def test_an_abandoned_part_is_removed_and_one_that_is_written_is_not(folder):
    names = [f"{name}.part" for name in IMAGES[:3]]
    for name in names:
        (folder / name).write_bytes(b"some of it")
    with (folder / names[0]).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        prune(folder, 8, [IMAGES[1]])
    assert there(folder) == {*IMAGES, names[0], names[1]}  # locked, wanted
    prune(folder, 8)
    assert there(folder) == set(IMAGES)


def test_a_folder_that_is_not_there(tmp_path):
    prune(tmp_path / "none", 1)
    assert there(tmp_path) == set()


def test_a_link_is_replaced_in_one_step(folder):
    (folder / CURRENT).symlink_to(IMAGES[0])
    point(folder, CURRENT, IMAGES[1])
    assert (folder / CURRENT).readlink().name == IMAGES[1]
    assert there(folder) == {*IMAGES, CURRENT}


def test_a_link_reaches_the_disk(folder, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    point(folder, CURRENT, IMAGES[0])
    assert synced == [True]


def test_a_fetcher_puts_images_where_they_are_pruned(tmp_path):
    content = b"firmware"
    (tmp_path / "source").write_bytes(content)
    digest = file_digest(tmp_path / "source")
    MemoryFetcher({"fw": content}).fetch("fw", digest, tmp_path / "firmware")
    prune(tmp_path / "firmware", 1)
    assert there(tmp_path / "firmware") == {digest}
