"""Working where processes cannot be started together: /dev/shm is read-only."""

import multiprocessing.synchronize
from concurrent.futures import ThreadPoolExecutor

from cramjax.data import executors


def test_without_semaphores_a_thread_works(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    pool = executors.open_pool(2)
    assert isinstance(pool, ThreadPoolExecutor) and pool.submit(len, "abc").result() == 3
    pool.shutdown()
