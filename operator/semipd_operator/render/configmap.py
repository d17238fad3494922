"""The ConfigMap that each agent mounts: start configuration and the digests of the tokens that it accepts."""

from __future__ import annotations

import json

from semipd_agent.contract import (
    CONFIG_FILE,
    SLO,
    Admission,
    AgentConfig,
    AgentFile,
    Bounds,
    PartitionConfig,
    Policy,
    token_digest,
)
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.render import names
from semipd_operator.render.names import Object
from semipd_operator.settings import CLAIM_ANNOTATION, Settings

_DIGESTS = str(AgentFile.model_fields["token_sha256"].alias)
"""In the file."""


def agent_config(service: SemiPDService) -> AgentConfig:
    """Everything that changes in place, as the agent takes it."""
    spec = service.spec
    partition = spec.partition
    slo = spec.slo
    return AgentConfig(
        generation=service.metadata.generation,
        uid=service.metadata.uid,
        slo=SLO.model_validate(slo.model_dump(by_alias=True)) if slo else None,
        partition=PartitionConfig(
            mode=spec.mode,
            policy=Policy(partition.policy),
            split=spec.split,
            bounds=Bounds(
                min_prefill_percent=partition.min_prefill_percent,
                max_prefill_percent=partition.max_prefill_percent,
                min_decode_percent=partition.min_decode_percent,
                max_decode_percent=partition.max_decode_percent,
            ),
            mixed_batches=bool(partition.mixed_batches),
        ),
        admission=spec.admission or Admission.OFF,
    )


def agent_file(service: SemiPDService, settings: Settings) -> AgentFile:
    return AgentFile(token_sha256=_digests(service, settings), config=agent_config(service))


def _digests(service: SemiPDService, settings: Settings) -> tuple[str, ...]:
    """Without a key no token is accepted. While a key is replaced, those of both are."""
    meta = service.metadata
    return tuple(token_digest(token) for token in settings.tokens(meta.namespace, meta.name, meta.uid))


def config_map(service: SemiPDService, settings: Settings, model_revision: str = "") -> Object:
    """`model_revision`: the commit of a hf:// model that new pods are to take; empty: the first one resolves it.

    Only the digest of the token is in it: whoever may read ConfigMaps may not command the agent."""
    content = agent_file(service, settings).model_dump_json(by_alias=True, exclude_none=True, indent=2)
    return _object(service, settings, content, model_revision)


def with_digests(live: Object, service: SemiPDService, settings: Settings) -> Object | None:
    """The ConfigMap as it stands, but with the digests of today's tokens. None: they are in it, or it is damaged, and
    says no configuration that could be kept."""
    data = live.get("data") or {}
    try:
        content = json.loads(data[CONFIG_FILE])
    except (KeyError, ValueError):
        return None
    digests = list(_digests(service, settings))
    if not isinstance(content, dict) or content.get(_DIGESTS, []) == digests:
        return None
    told = json.dumps(content | {_DIGESTS: digests}, indent=2)
    return _object(service, settings, told, data.get(names.PIN_FILE, ""))


def _object(service: SemiPDService, settings: Settings, content: str, model_revision: str) -> Object:
    metadata = names.metadata(service, names.config_map_name(service))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata | ({"annotations": {CLAIM_ANNOTATION: settings.name}} if settings.name else {}),
        "data": {CONFIG_FILE: content + "\n", **({names.PIN_FILE: model_revision} if model_revision else {})},
    }
