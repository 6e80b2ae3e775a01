"""Ties an engine process to the server that started it: it ends with it, and by nobody else's signal.

Ctrl-C in a terminal and a process manager that stops a service signal every process of it. The server finishes what it
has accepted then, for which it needs its engine; vLLM's engine would give up its requests at once. And nothing in vLLM
ends an engine whose server was killed: it would keep its memory, or the GPU, for ever.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


@functools.cache
def follow_parent() -> None:
    """In a process that another one has started; in a server itself nothing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)

    def end() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, name="fantail-parent", daemon=True).start()
