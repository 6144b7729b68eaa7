"""Hosts that lack what Linux with glibc has, such as a Mac: simulated by taking it away."""

import ctypes
import os
import pathlib
import sys

import pytest

from cramjax import start
from cramjax.config import languages, schema
from cramjax.data import executors, prepare
from cramjax.tuning import devices
from tests.data.text_source import FakeSource


@pytest.fixture
def mac(monkeypatch):
    """No affinity, no /proc, no mallopt, no folder of devices."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    exists = pathlib.Path.exists
    monkeypatch.setattr(
        pathlib.Path,
        "exists",
        lambda path, **kwargs: not str(path).startswith("/proc") and exists(path, **kwargs),
    )
    monkeypatch.setattr(start, "_DEVICES", pathlib.Path("/no/such/folder"))


def test_cores_and_memory_are_asked_in_other_ways(mac):
    assert start.n_cores() == executors.n_cores() == os.cpu_count()
    assert not start.keep_freed_memory()
    assert devices._cpu_flags() == set()
    assert start.computes_on_cpu()


def test_a_c_library_without_mallopt_keeps_its_own_ways(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not start.keep_freed_memory()


def test_text_is_prepared(mac, tmp_path):
    data = schema.defaults().data
    data.update(cache_dir=str(tmp_path), vocab_size=200, heldout_fraction=0.1)
    data.update(languages.choices(data))
    directory = prepare.prepare(data, [FakeSource(parts_n=2, documents_n=20)], n_workers=1)
    assert prepare.read_manifest(directory)["documents"] == 40
