"""Compiling and linking through the cache."""

from __future__ import annotations

import subprocess

import pytest
from codegen.building import VISIBLE, call, fake, function

from vitc.codegen import build, sources
from vitc.codegen.build import build_library, compile_objects, first_errors
from vitc.codegen.cache import BuildCache
from vitc.codegen.sources import Source, headers_digest, object_key
from vitc.codegen.toolchain import find_compiler, find_toolchain


def test_a_library_works_and_the_second_time_comes_from_the_cache(toolchain, cache, tmp_path):
    parts = [function(f"f{i}", i) for i in range(4)]
    seen: list[tuple[str, int, int]] = []
    first = build_library(
        parts,
        toolchain=toolchain,
        output=tmp_path / "new" / "a.so",
        jobs=2,
        cache=cache,
        progress=lambda *step: seen.append(step),
    )
    assert call(first.output, "f3") == 3
    assert [item.name for item in first.objects] == ["f0", "f1", "f2", "f3"]
    assert first.hits == 0
    assert not first.link.hit
    assert [step[1:] for step in seen] == [(i, 5) for i in range(1, 6)]
    assert seen[-1][0] == "a.so"

    again = build_library(parts, toolchain=toolchain, output=tmp_path / "b.so", cache=cache)
    assert again.hits == 4
    assert again.link.hit
    assert again.output.read_bytes() == first.output.read_bytes()
    assert [o.seconds for o in again.objects] == [o.seconds for o in first.objects]
    assert not list((cache.root / "work").iterdir())


def test_the_output_may_be_appended_to(toolchain, cache, tmp_path):
    """Weights are: the cache must not notice."""
    output = tmp_path / "a.so"
    build_library([function("f")], toolchain=toolchain, output=output, cache=cache)
    with output.open("ab") as file:
        file.write(b"weights")
    again = build_library([function("f")], toolchain=toolchain, output=output, cache=cache)
    assert again.link.hit
    assert not output.read_bytes().endswith(b"weights")


def test_equal_sources_are_one_object(toolchain, cache):
    same = Source("twin", function("f").text, ("-O1",))
    assert len(compile_objects([function("f"), same], toolchain=toolchain, cache=cache)) == 1


def test_an_entry_shows_how_it_was_made(toolchain, cache):
    source = Source("warns", "int f() { int unused; return 1; }\n", ("-Wall",))
    (report,) = compile_objects([source], toolchain=toolchain, cache=cache)
    folder = report.path.parent
    names = ["command.txt", "entry.json", "log.txt", "warns.cc", "warns.o"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert "unused" in report.log
    (hit,) = compile_objects([source], toolchain=toolchain, cache=cache)
    assert hit.hit
    assert hit.log == report.log
    (folder / "warns.o").unlink()
    subprocess.run(
        ["sh", folder / "command.txt"], cwd=folder, check=True, stderr=subprocess.DEVNULL
    )
    assert (folder / "warns.o").exists()


def test_the_link_command_works_in_its_entry(toolchain, cache, tmp_path):
    report = build_library(
        [function("f")], toolchain=toolchain, output=tmp_path / "a.so", cache=cache
    )
    made = report.link.path
    made.unlink()
    subprocess.run(["sh", made.parent / "command.txt"], cwd=made.parent, check=True)
    assert made.exists()


def test_what_changes_an_object_changes_its_key(toolchain, tmp_path, monkeypatch):
    source = function("f")
    key = object_key(source, toolchain)
    assert object_key(Source("other_name", source.text, source.flags), toolchain) == key
    assert object_key(function("f", 2), toolchain) != key
    assert object_key(function("f", flags=("-O2",)), toolchain) != key
    assert object_key(source, fake(tmp_path, "true")) != key
    monkeypatch.setattr(sources, "headers_digest", lambda text: "changed")
    assert object_key(source, toolchain) != key


def test_flags_keep_their_borders(toolchain):
    joined, split = function("f", flags=("-Da b",)), function("f", flags=("-Da", "b"))
    assert object_key(joined, toolchain) != object_key(split, toolchain)


def test_only_included_headers_are_hashed_and_all_of_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.h").write_text('#include "sub/b.h"\n')
    (tmp_path / "sub" / "b.h").write_text("1")
    (tmp_path / "other.h").write_text("1")
    text = '#include <vector>\n  #  include "a.h"\n#include "absent.h"\n'
    first = headers_digest(text, tmp_path)
    (tmp_path / "other.h").write_text("2 and longer")
    assert headers_digest(text, tmp_path) == first
    assert headers_digest('#include "other.h"\n', tmp_path) != first
    (tmp_path / "sub" / "b.h").write_text("2 and longer")
    assert headers_digest(text, tmp_path) != first


def test_a_changed_version_script_links_again(toolchain, cache, tmp_path):
    script = tmp_path / "exports.map"
    keys: list[str] = []
    for names in ("f", "g"):
        script.write_text(f"{{ global: {names}; local: *; }};\n")
        report = build_library(
            [function("f"), function("g")],
            toolchain=toolchain,
            link_flags=[f"-Wl,--version-script={script}"],
            output=tmp_path / "a.so",
            cache=cache,
        )
        keys.append(report.link.key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize("name", ["", "../up", "a b", "-o", "a/b"])
def test_a_name_is_a_file_name(name):
    with pytest.raises(ValueError, match="no name for a source"):
        Source(name, "")


def test_native_flags_are_refused():
    with pytest.raises(ValueError, match="name the architecture"):
        Source("f", "", ("-march=native",))


def test_first_errors_are_the_ones_shown():
    log = "\n".join(f"a.cc:{i}: error: e{i}\n  | code\n  | ^~~\nnote {i}" for i in range(9))
    shown = first_errors(log)
    assert [line for line in shown if "error" in line] == [
        f"a.cc:{i}: error: e{i}" for i in range(3)
    ]
    assert not any(line.startswith("note") for line in shown)
    assert first_errors("one\ntwo") == ["one", "two"]


def test_the_cache_stays_within_its_limit(toolchain, tmp_path):
    cache = BuildCache(tmp_path / "cache", limit=1)
    report = build_library(
        [function("f")], toolchain=toolchain, output=tmp_path / "a.so", cache=cache
    )
    assert call(report.output, "f") == 1
    assert cache.size() == 0


def test_jobs_default_to_the_cpus_of_this_process(monkeypatch):
    monkeypatch.setattr(build.os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert build.default_jobs() == 3


def test_a_cuda_library_builds_and_loads_without_a_gpu(cache, tmp_path):
    if find_compiler("cuda").compiler is None:
        pytest.skip("no nvcc: pip install vitc[cuda]")
    kernel = Source(
        "kernel",
        "__global__ void k(float* x) { *x = 1; }\n"
        f"{VISIBLE} int launch(float* x) {{ k<<<1, 1>>>(x); return cudaGetLastError() != 0; }}\n",
        ("-arch=sm_90a",),
        "cuda",
    )
    report = build_library(
        [kernel, function("f", 7)],
        toolchain=find_toolchain(["cuda"]),
        output=tmp_path / "a.so",
        cache=cache,
    )
    assert call(report.output, "f") == 7


def test_a_hip_library_builds_and_loads_without_a_gpu(cache, tmp_path):
    if find_compiler("hip").compiler is None:
        pytest.skip("no hipcc: apt-get install hipcc")
    kernel = Source(
        "kernel",
        "#include <hip/hip_runtime.h>\n__global__ void k(float* x) { *x = 1; }\n"
        f"{VISIBLE} int launch(float* x) {{ k<<<1, 1>>>(x); return hipGetLastError() != 0; }}\n",
        ("--offload-arch=gfx90a",),
        "hip",
    )
    report = build_library(
        [kernel, function("f", 7)],
        toolchain=find_toolchain(["hip"]),
        output=tmp_path / "a.so",
        cache=cache,
    )
    assert call(report.output, "f") == 7
