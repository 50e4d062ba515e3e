"""The build cache: eviction, damage, dead processes, and many processes at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitc.codegen.cache import BuildCache, cache_root, parse_size, storage_error
from vitc.errors import StorageError


def put(cache: BuildCache, key: str, data: bytes = b"x" * 1000) -> Path:
    """Stores an artefact as a build does; returns its entry's folder."""
    with cache.workspace() as work:
        folder = work / "making"
        folder.mkdir()
        (folder / "a.o").write_bytes(data)
        return cache.store(key, folder, "a.o", 0.5, work).folder


def get(cache: BuildCache, key: str) -> bytes | None:
    with cache.workspace() as work:
        entry = cache.fetch(key, work)
        return None if entry is None else (work / key / entry.artefact).read_bytes()


@pytest.mark.parametrize(
    ("environ", "root"),
    [
        ({"VITC_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, Path("/a/b")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/vitc")),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache/vitc"),
        ({}, Path.home() / ".cache/vitc"),
    ],
)
def test_where_the_cache_is(environ, root):
    assert cache_root(environ) == root


def test_sizes():
    texts = ("5GiB", "500M", "1.5k", "77", "2 TB")
    assert [parse_size(t) for t in texts] == [5 * 2**30, 500 * 2**20, 1536, 77, 2**41]
    with pytest.raises(StorageError, match="VITC_CACHE_LIMIT: 'much' is no size"):
        BuildCache.default({"VITC_CACHE_LIMIT": "much"})


def test_an_entry_comes_back_and_nothing_else_stays(tmp_path):
    cache = BuildCache(tmp_path)
    assert get(cache, "k") is None
    folder = put(cache, "k", b"object")
    assert get(cache, "k") == b"object"
    assert sorted(p.name for p in folder.iterdir()) == ["a.o", "entry.json"]
    assert not list((tmp_path / "work").iterdir())


def test_a_key_stored_twice_keeps_one_entry(tmp_path):
    cache = BuildCache(tmp_path)
    put(cache, "k", b"first")
    put(cache, "k", b"again")
    assert get(cache, "k") == b"first"


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "no entry.json", "bad entry.json", "no object"]
)
def test_a_damaged_entry_is_a_miss_and_heals(tmp_path, damage):
    cache = BuildCache(tmp_path)
    folder = put(cache, "k", b"object")
    match damage:
        case "flip":
            (folder / "a.o").write_bytes(b"objecx")
        case "truncate":
            (folder / "a.o").write_bytes(b"")
        case "no entry.json":
            (folder / "entry.json").unlink()
        case "bad entry.json":
            (folder / "entry.json").write_text('{"artefact": ')
        case _:
            (folder / "a.o").unlink()
    assert get(cache, "k") is None
    put(cache, "k", b"object")
    assert get(cache, "k") == b"object"


def test_the_least_recently_used_go_first(tmp_path):
    cache = BuildCache(tmp_path, limit=3500)
    for i, key in enumerate("abc"):
        os.utime(put(cache, key), (i, i))
    assert get(cache, "a") is not None  # now the latest
    put(cache, "d")
    with cache.workspace() as work:
        freed = cache.trim(work)
    assert freed > 0
    assert cache.size() <= cache.limit
    assert [key for key in "abcd" if get(cache, key)] == ["a", "d"]


def test_what_a_build_uses_survives_eviction(tmp_path):
    cache = BuildCache(tmp_path)
    put(cache, "k", b"object")
    with cache.workspace() as work:
        cache.fetch("k", work)
        assert BuildCache(tmp_path).clear() > 0
        assert (work / "k" / "a.o").read_bytes() == b"object"
    assert get(cache, "k") is None


def test_a_dead_process_is_swept_and_a_living_one_is_not(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from vitc.codegen.cache import BuildCache\n"
        "with BuildCache(Path(sys.argv[1])).workspace() as w:\n"
        "    (w / 'half.o').write_text('x'); print(w, flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    left = Path(child.stdout.readline().strip())
    cache = BuildCache(tmp_path)
    try:
        assert cache.sweep() == 0
        assert left.exists()
    finally:
        child.kill()
        child.communicate()
    assert left.exists()
    with cache.workspace():
        assert not left.exists()
    assert not list((tmp_path / "work").iterdir())


def _hammer(root: Path, seed: int) -> None:
    cache = BuildCache(root, limit=6000)
    for i in range(40):
        key = f"k{(seed * 7 + i * 3) % 11}"
        if get(cache, key) is None:
            put(cache, key, key.encode() * 400)
        with cache.workspace() as work:
            entry = cache.fetch(key, work)
            if entry is not None:  # complete, though others evict all the time
                assert (work / key / "a.o").read_bytes() == key.encode() * 400
            cache.trim(work)


def test_processes_share_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_hammer, args=(tmp_path, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert not list((tmp_path / "work").iterdir())


def test_only_the_latest_failures_are_kept(tmp_path):
    cache = BuildCache(tmp_path)
    for i in range(12):
        with cache.workspace() as work:
            folder = work / "failing"
            folder.mkdir()
            kept = cache.keep_failure(folder, f"k{i}")
            os.utime(kept, (i, i) if i < 11 else None)
            assert kept.exists()
    assert len(list((tmp_path / "failed").iterdir())) == 8
    assert (tmp_path / "failed" / "k11").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with (
        pytest.raises(StorageError, match=r"(?s)file.*VITC_CACHE") as caught,
        BuildCache(blocked).workspace(),
    ):
        pass
    assert isinstance(caught.value.__cause__, OSError)


def test_a_full_disk_says_how_much_is_free(tmp_path):
    error = storage_error(
        OSError(errno.ENOSPC, "No space left on device"), tmp_path / "not" / "yet"
    )
    assert "No space left on device" in str(error)
    assert "MiB free" in str(error)


def test_a_hit_is_cheap(tmp_path):
    cache = BuildCache(tmp_path)
    for i in range(100):
        put(cache, f"k{i}")
    start = time.perf_counter()
    with cache.workspace() as work:
        assert all(cache.fetch(f"k{i}", work) for i in range(100))
    assert time.perf_counter() - start < 2  # a tenth of it here, undisturbed
