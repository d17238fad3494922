"""spec.engine: image, device and sizes of the engine. A change rolls the pods."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from semipd_engine.contract import Device, DType, EngineOptions
from semipd_operator.api.quantity import QuantityValue, any_quantity, parse_quantity, positive_quantity
from semipd_operator.api.rules import ApiModel, Rule, between, image_reference
from semipd_operator.api.v1alpha1.model import Text

ResourceList = dict[str, Annotated[QuantityValue, any_quantity("a resource amount")]]


class Resources(ApiModel):
    limits: ResourceList = Field(
        default={}, max_length=32, description="Most that the engine container may use, quantities by resource name."
    )
    requests: ResourceList = Field(
        default={}, max_length=32, description="What the scheduler reserves, quantities by resource name."
    )


GPU, MIG = "nvidia.com/gpu", "nvidia.com/mig-"
ONE_GPU = "the engine uses one; add pods by replicas"


def _one_gpu(part: str) -> Rule:
    """More would be reserved and paid for, and stand idle."""

    def holds(engine: EngineSpec) -> bool:
        number = parse_quantity(getattr(engine.resources, part).get(GPU, 0))
        return number is None or number <= 1

    amount = f"self.resources.{part}['{GPU}']"
    in_words = f"!isQuantity({amount}) || !quantity({amount}).isGreaterThan(quantity('1'))"
    below = f"type({amount}) == int ? {amount} <= 1 : {in_words}"
    return Rule(
        cel=f"!has(self.resources) || !has(self.resources.{part}) || !('{GPU}' in self.resources.{part}) || ({below})",
        holds=holds,
        message=f"engine.resources.{part} asks for more than one {GPU}: {ONE_GPU}",
        field=f".resources.{part}",
    )


def _whole_gpu(part: str) -> Rule:
    """A MIG slice or a shared GPU has another name: it would be reserved, and the engine would run on the CPU."""
    return Rule(
        cel=f"!has(self.resources) || !has(self.resources.{part}) || "
        f"self.resources.{part}.all(name, !name.startsWith('{GPU}.') && !name.startsWith('{MIG}'))",
        holds=lambda engine: all(is_whole_gpu(name) for name in getattr(engine.resources, part)),
        message=f"engine.resources.{part} {NOT_WHOLE}",
        field=f".resources.{part}",
    )


NOT_WHOLE = f"names a part of a GPU (nvidia.com/mig-…, nvidia.com/gpu.shared): a split needs a whole one, {GPU}"


def is_whole_gpu(resource: str) -> bool:
    """Whether its name is not that of a part of a GPU, as NVIDIA's device plugin has it (nvidia.com/hostdev is a
    network device)."""
    return not resource.startswith((f"{GPU}.", MIG))


class EngineSpec(ApiModel):
    """Rolls."""

    RULES: ClassVar = (_one_gpu("limits"), _one_gpu("requests"), _whole_gpu("limits"), _whole_gpu("requests"))

    image: Annotated[Text, image_reference("engine.image")] | None = Field(
        default=None, description="Image of agent and engine. Default: the operator's own choice (chart: engine.image)."
    )
    device: Device = Field(
        default=Device.AUTO,
        description="auto, cuda or cpu. auto is cuda where resources name nvidia.com/gpu, else cpu; cuda adds a limit "
        "of one nvidia.com/gpu where resources name none.",
    )
    dtype: DType = Field(
        default=DType.AUTO,
        description="Number format of weights and KV cache: auto (the checkpoint's; float32 on a CPU without "
        "bfloat16), float32 or bfloat16.",
    )
    kv_cache_memory: Annotated[QuantityValue, positive_quantity("engine.kvCacheMemory", "16Gi")] | None = Field(
        default=None, description="Bytes of the KV cache, a quantity. Default: a part of the device's free memory."
    )
    max_model_len: (
        Annotated[int, between("engine.maxModelLen", 1, 10_000_000, "it is the longest prompt plus output, in tokens")]
        | None
    ) = Field(default=None, description="Longest prompt plus output, in tokens. Default: the model's own.")
    max_num_seqs: Annotated[
        int, between("engine.maxNumSeqs", 1, 4096, "it is the most requests that decode at once")
    ] = Field(
        default=EngineOptions.model_fields["max_num_seqs"].default, description="Most requests that decode at once."
    )
    resources: Resources = Field(default=Resources(), description="Resources of the engine container.")
