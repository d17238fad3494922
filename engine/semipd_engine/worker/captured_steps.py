"""The decode steps of one plan by captured programs, each queued before the host knows the tokens of the one before.

Where all that is unknown of a step is its tokens, they are on the device already: so while the host fetches a step's
tokens, the device computes the next step of those rows that have not ended, each with the token from its place in the
step before. A row that turns out to have ended at a stop id has been computed once more: within the blocks of its plan,
and core gives none of them to others before that step is over (`Scheduler.book`). Knows no plan and no channel.
"""

from __future__ import annotations

from collections.abc import Sequence

from semipd_engine.sampling.sampler import SamplingRow, settings
from semipd_engine.worker.decode_graphs import DecodeGraphs, Started
from semipd_engine.worker.input_batch import InputBatch


class CapturedSteps:
    def __init__(self, graphs: DecodeGraphs) -> None:
        self._graphs = graphs
        self._begun: Started | None = None
        """The step after the one whose tokens were fetched."""
        self._going: Sequence[int] = ()
        """Its rows, among those whose tokens were fetched."""
        self._places: Sequence[int] = ()
        """In it, of the rows that go on."""

    @property
    def ahead(self) -> bool:
        """Is a step queued whose turn has not come?"""
        return self._begun is not None

    def step(self, inputs: InputBatch, rows: Sequence[SamplingRow]) -> Started:
        """Queue the next one."""
        return self._graphs.start(inputs.arrays() | settings(rows))

    def tokens(self, inputs: InputBatch, rows: Sequence[SamplingRow], more: Sequence[int]) -> list[int]:
        """Of the next step, of each of its rows; all of them are `plain`. `more`: which of them may be in a step that
        is queued behind. Whose length ends is not; who stops at an id is, once."""
        step, places, self._begun = self._begun, self._places, None
        if step is None:
            step, places = self.step(inputs, rows), range(len(rows))
        self._going = going = [i for i in more if rows[i].goes_on(1)]
        if going:
            sources = [places[i] for i in going]
            following = inputs.following(going, sources, len(step.logits))
            self._begun = self._graphs.start(following | settings([rows[i] for i in going], 1))
        found = step.tokens()
        return [found[place] for place in places]

    def keep(self, running: Sequence[int]) -> None:
        """Of the rows whose tokens were fetched last, these go on: some of those in the step that is queued."""
        if self.ahead:
            place = {row: place for place, row in enumerate(self._going)}
            self._places = [place[row] for row in running]
