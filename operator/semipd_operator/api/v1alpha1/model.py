"""spec.model: which weights, from where, kept where. A change rolls the pods."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from semipd_operator.api.quantity import QuantityValue, positive_quantity
from semipd_operator.api.rules import (
    SUBDOMAIN,
    ApiModel,
    Rule,
    data_key,
    exactly_one,
    matches,
    matches_not,
    object_name,
)

Text = Annotated[str, Field(min_length=1, max_length=253)]


def _only_hf(field: str, python_name: str) -> Rule:
    return Rule(
        cel=f"!has(self.{field}) || self.uri.startsWith('hf://')",
        holds=lambda model: getattr(model, python_name) is None or model.uri.startswith("hf://"),
        message=f"model.{field} only applies to a hf:// uri: remove it or change model.uri",
        field=f".{field}",
    )


class SecretKeyRef(ApiModel):
    name: Annotated[Text, object_name("model.tokenSecretRef.name", "Secret")] = Field(
        description="Name of the Secret, in the namespace of the service. Default: none, required."
    )
    key: Annotated[Text, data_key("model.tokenSecretRef.key")] = Field(
        default="token", description="Key in the Secret."
    )


class ClaimRef(ApiModel):
    claim_name: Annotated[Text, object_name("model.cache.persistentVolumeClaim.claimName", "PersistentVolumeClaim")] = (
        Field(description="Name of a PersistentVolumeClaim in the namespace. Default: none, required.")
    )


class EmptyDirCache(ApiModel):
    size_limit: Annotated[QuantityValue, positive_quantity("sizeLimit", "40Gi")] | None = Field(
        default=None, description="Most bytes of the directory. Default: no limit but the node's."
    )


class ModelCache(ApiModel):
    RULES: ClassVar = (exactly_one("persistentVolumeClaim", "emptyDir", of="model.cache"),)

    persistent_volume_claim: ClaimRef | None = Field(
        default=None, description="Keep downloads on this claim; they survive pods. Default: not used."
    )
    empty_dir: EmptyDirCache | None = Field(
        default=None, description="Keep downloads in the pod; each new pod downloads again. Default: used."
    )


class ModelSpec(ApiModel):
    """Rolls."""

    RULES: ClassVar = (
        _only_hf("revision", "revision"),
        _only_hf("tokenSecretRef", "token_secret_ref"),
        _only_hf("cache", "cache"),
    )

    uri: Annotated[
        str,
        Field(max_length=512),
        matches(
            "^(hf|pvc|file)://",
            "model.uri must start with hf://, pvc:// or file://: write it like hf://Qwen/Qwen3-8B, "
            "pvc://CLAIM/FOLDER or file:///models/qwen3",
        ),
        matches(
            r"^hf://[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$",
            "model.uri names no Hugging Face repository: write it like hf://Qwen/Qwen3-8B",
            unless="hf://",
        ),
        matches(
            r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/]+)*/?$",
            "model.uri names no claim: write it like pvc://CLAIM/FOLDER",
            unless="pvc://",
        ),
        replace(
            matches(
                rf"^pvc://{SUBDOMAIN}(/|$)",
                "model.uri names no claim that there can be: write it like pvc://CLAIM/FOLDER",
                unless="pvc://",
            ),
            spares_stored=True,
        ),
        matches_not(r"/\.\.?(/|$)", "model.uri must not leave its volume: remove the parts . and .."),
        matches(
            r"^file:///[^/]",
            "model.uri must hold an absolute path: write it like file:///models/qwen3",
            unless="file://",
        ),
    ] = Field(
        description="Where the weights are, a Hugging Face folder: hf://ORG/NAME (downloaded by the init container "
        "`model`), pvc://CLAIM/FOLDER (a mounted claim) or file:///PATH (inside the container; mount it with "
        "podTemplate). Default: none, required."
    )
    revision: Text | None = Field(
        default=None, description="Branch, tag or commit of a hf:// model. Default: the main branch."
    )
    served_name: (
        Annotated[
            str,
            Field(max_length=253),
            matches(
                r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$",
                "model.servedName must be letters, digits and . _ / : -: write it like qwen3-8b",
            ),
        ]
        | None
    ) = Field(default=None, description="Name of the model in the API. Default: metadata.name.")
    token_secret_ref: SecretKeyRef | None = Field(
        default=None, description="Hugging Face token for a gated hf:// model. Default: no token."
    )
    cache: ModelCache | None = Field(
        default=None, description="Where downloads of a hf:// model are kept. Default: an emptyDir of the pod."
    )
