"""The engine's flags and resources from a specification; the pod and `semipd run` share them."""

from __future__ import annotations

from pathlib import Path

from semipd_engine.contract import Device, EngineOptions
from semipd_operator.api.quantity import whole
from semipd_operator.api.v1alpha1.engine import GPU, EngineSpec
from semipd_operator.render.names import Object


def device(engine: EngineSpec) -> Device:
    """auto is cuda where the resources name a GPU, else cpu."""
    if engine.device is not Device.AUTO:
        return engine.device
    named = GPU in engine.resources.limits or GPU in engine.resources.requests
    return Device.CUDA if named else Device.CPU


def options(
    engine: EngineSpec,
    served_name: str,
    *,
    model: str,
    host: str,
    port: int,
    run_dir: Path | None,
    api_key_file: Path | None = None,
) -> EngineOptions:
    """Launch options. The split is not among them: it changes without a restart, through the agent."""
    return EngineOptions(
        model=Path(model),
        served_model_name=served_name,
        device=device(engine),
        dtype=engine.dtype,
        host=host,
        port=port,
        max_model_len=engine.max_model_len or 0,
        max_num_seqs=engine.max_num_seqs,
        kv_cache_memory=0 if engine.kv_cache_memory is None else whole(engine.kv_cache_memory),
        run_dir=run_dir,
        api_key_file=api_key_file,
    )


def resources(engine: EngineSpec) -> Object:
    """The container's resources; a cuda engine always asks for a GPU."""
    result: Object = {}
    limits = dict(engine.resources.limits)
    if device(engine) is Device.CUDA and GPU not in limits:
        limits[GPU] = engine.resources.requests.get(GPU, 1)
    if limits:
        result["limits"] = limits
    if engine.resources.requests:
        result["requests"] = dict(engine.resources.requests)
    return result


_PLAIN = ("cpu", "memory", "ephemeral-storage")


def download_resources(engine: EngineSpec) -> Object:
    """The init container's: the engine's without devices. A pod is counted by its largest phase, so they cost nothing,
    and a namespace that wants limits of every container has them."""
    plain = {
        kind: {name: value for name, value in values.items() if name in _PLAIN}
        for kind, values in resources(engine).items()
    }
    return {kind: values for kind, values in plain.items() if values}
