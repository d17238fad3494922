"""Traffic that checks itself: streams on the fake model, each compared with what the model answers undisturbed."""

from __future__ import annotations

import random
import threading

from tests.engine.fake_model import reference
from tests.engine.harness import Engine, Stream

from e2e.lib.waiting import PATIENCE_S


class Load:
    """Keeps eight streams in the engine until it is stopped, and compares each with the reference."""

    def __init__(self, engine: Engine) -> None:
        self._client = engine.client()
        self._stop = threading.Event()
        self.finished: list[Stream] = []
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(8)]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int) -> None:
        rng = random.Random(index)
        while not self._stop.is_set():
            prompt = [rng.randrange(4000) for _ in range(rng.randrange(1, 200))]
            stream = self._client.add(prompt, max_tokens=rng.randrange(1, 120))
            if not stream.done.wait(PATIENCE_S):
                self.wrong.append(f"{stream.key} never ended: {len(stream.tokens)} tokens")
                return
            if stream.error or stream.tokens != reference(prompt, stream.sampling.max_tokens):
                self.wrong.append(f"{stream.key}: {stream.error} {len(stream.tokens)} of {stream.sampling.max_tokens}")
            self.finished.append(stream)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()  # it has ended by then, or said in `wrong` that its stream did not
