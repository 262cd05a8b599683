"""The page's server in a thread of the test, over any session; and one that works for as long as it is let."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from tl_subvalues.live.guard import Keys
from tl_subvalues.live.server import address_of, application, listening
from tl_subvalues.live.session import Session
from tl_subvalues.progress import step


@contextmanager
def served(session: Session, name: str = "tiny") -> Iterator[tuple[str, Keys]]:
    """A server's address, http://127.0.0.1:N, and its secrets."""
    opened = listening("127.0.0.1", 0)
    address = address_of(opened)
    keys = Keys(f"tl-subvalues-{address.rpartition(':')[2]}")
    config = uvicorn.Config(application(session, name, keys), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield address, keys
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class Slow:
    """A tracer that takes its time, step by step, for prompts that say so."""

    def __init__(self, tracer: Any, seconds: float = 20.0) -> None:
        self._tracer, self._seconds = tracer, seconds
        self.begun, self.ended = 0, 0
        self.tokens, self.retarget = tracer.tokens, tracer.retarget
        self.document, self.part = tracer.document, tracer.part

    def trace(self, tokens: list[int], target: Any, against: Any) -> Any:
        """Steps until somebody stops it."""
        if len(tokens) >= 6:
            self.begun += 1
            until = time.monotonic() + self._seconds
            try:
                while time.monotonic() < until:
                    step("neurons: 320 of 46,080 evaluated")
                    time.sleep(0.02)
            finally:
                self.ended += 1
        return self._tracer.trace(tokens, target, against)
