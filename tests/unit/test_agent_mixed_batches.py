"""The controller and mixed batches: chosen where they are allowed and best, named where they can be no choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tests.unit.agent_bench import Bench
from tests.unit.agent_plant import Pod, Speed, poisson

from semipd_agent import contract
from semipd_agent.config import ConfigRefused
from semipd_agent.contract import (
    SLO,
    AgentConfig,
    Bounds,
    Mode,
    PartitionConfig,
    Policy,
)
from semipd_agent.partitioner import Grant
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.slo.predictive import ModelPredictive
from semipd_engine.contract import Observation
from semipd_engine.contract import Split as EngineSplit

pytestmark = pytest.mark.unit


class Isolated(CpuPaced):
    """As a GPU is."""

    name = "isolated"
    mixes = False


def backend_of(kind: type[CpuPaced]) -> Callable[[Mode], CpuPaced]:
    return lambda mode: kind(Grant(cpus=(0, 1)))


@pytest.mark.parametrize(
    ("backend", "changes", "why"),
    [
        (CpuPaced, {}, ""),
        (Isolated, {}, "backend isolated does not offer it"),
        (CpuPaced, {"policy": Policy.ALGORITHM1}, "only policy ModelPredictive chooses so"),
        (CpuPaced, {"bounds": Bounds(max_decode_percent=80)}, "a share is bounded below 100"),
        (Isolated, {"mode": Mode.MANUAL}, ""),
        (Isolated, {"mixed_batches": False}, ""),
    ],
)
def test_mixed_batches_that_nobody_can_choose_are_named(
    backend: type[CpuPaced], changes: dict[str, object], why: str
) -> None:
    partition = PartitionConfig(mode=Mode.AUTO, mixed_batches=True).model_copy(update=changes)
    asked = AgentConfig(generation=1, slo=SLO(ttft_milliseconds=500), partition=partition)
    bench = Bench(asked, backend_of(backend))
    bench.tick()
    bench.tick()
    report = bench.report().partition
    assert report.state == "Applied"
    assert report.message == (f"partition.mixedBatches has no effect: {why}" if why else "")


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.MANUAL])
def test_a_backend_that_cannot_mix_starts_with_the_shares(mode: Mode) -> None:
    """What is asked for is what is reported, planned and sent."""
    start = contract.Split(prefill_percent=60, decode_percent=80, mixed_tokens=256)
    asked = AgentConfig(slo=SLO(ttft_milliseconds=500), partition=PartitionConfig(mode=mode, split=start))
    for kind, said in ((Isolated, "60/80"), (CpuPaced, "mixed/256")):
        bench = Bench(asked, backend_of(kind))
        bench.tick()
        assert str(bench.controller.requested) == str(bench.sent[0].plan.split) == said


@pytest.mark.parametrize("known", [(False, True), (True, False), (True, True)])
def test_an_operator_that_does_not_know_mixed_batches_says_nothing_of_them(known: tuple[bool, bool]) -> None:
    """Upgrade and roll-back of the operator: the same generation, from one who knows the field and one who does not."""
    first, second = (
        AgentConfig(
            generation=3,
            slo=SLO(ttft_milliseconds=500),
            partition=PartitionConfig(mode=Mode.AUTO, mixed_batches=mixed),
        )
        for mixed in known
    )
    bench = Bench(first)
    bench.controller.configure(second)
    assert bench.controller.config.partition.mixed_batches
    policy = bench.controller.pilot.policy
    assert isinstance(policy, ModelPredictive) and policy.mixes
    other = second.model_copy(update={"slo": SLO(ttft_milliseconds=900)})
    with pytest.raises(ConfigRefused, match="with another slo"):
        bench.controller.configure(other)
    bench.controller.configure(
        second.model_copy(update={"generation": 4, "partition": PartitionConfig(mode=Mode.AUTO)})
    )
    assert not bench.controller.config.partition.mixed_batches, "the next one says what it says"


def test_auto_has_no_isolation_where_that_is_allowed_and_best_and_gives_it_up_when_it_is_forbidden() -> None:
    """Long prompts: mixed steps serve more of them in time than any split of the plant does."""
    slo = SLO(ttft_milliseconds=750, tpot_milliseconds=30)
    partition = PartitionConfig(mode=Mode.AUTO, mixed_batches=True)
    allowed = AgentConfig(generation=1, slo=slo, partition=partition)
    pod = Pod(allowed, poisson(3.25, 60, 2000, 60, 1), Speed(prompt_token=5e-5, step=0.006, row=0.0003))
    for second in range(1, 31):
        pod.tick(float(second))
    mixed = pod.controller.requested
    assert mixed.mixed_tokens in (512, 256, 128)
    assert pod.engine.split == mixed and pod.controller.readback.applied == mixed
    assert pod.controller.log.newest_first()[0].to.mixed_tokens == mixed.mixed_tokens
    forbidden = AgentConfig(generation=2, slo=slo, partition=partition.model_copy(update={"mixed_batches": False}))
    pod.controller.configure(forbidden)
    assert pod.controller.requested == EngineSplit()
    for second in range(31, 60):
        pod.tick(float(second))
    assert not pod.engine.split.mixed_tokens


def test_a_backend_that_cannot_mix_is_never_asked_to() -> None:
    partition = PartitionConfig(mode=Mode.AUTO, mixed_batches=True)
    asked = AgentConfig(generation=1, slo=SLO(ttft_milliseconds=500), partition=partition)
    bench = Bench(asked, backend_of(Isolated))
    observation = Observation(core_id="c", at=1.0, prefill_chunk_tokens=512)

    def in_reach(pod: Bench) -> Sequence[EngineSplit]:
        return pod.controller._leeway(SLO(ttft_milliseconds=500), pod.snapshot()).in_reach(observation)

    assert not any(s.mixed_tokens for s in in_reach(bench))
    assert any(s.mixed_tokens for s in in_reach(Bench(asked)))
