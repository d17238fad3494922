"""`/docs`: the OpenAPI document as one page, without scripts, styles or pictures from elsewhere. Pure."""

from __future__ import annotations

import json
from typing import Any

import jinja2
from markupsafe import Markup

Json = dict[str, Any]

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ info.title }} {{ info.version }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1rem } td, th { border: 1px solid #ccc; padding: .2rem .6rem;
text-align: left; vertical-align: top } code { font-size: 93% } h2 { margin-top: 2rem } .kind { color: #666 }
</style></head><body>
<h1>{{ info.title }} {{ info.version }}</h1>
<p>The API as JSON: <a href="openapi.json">openapi.json</a>, which also says which fields go together.
{% if security %}Send <code>Authorization: Bearer KEY</code>, but where it says that no key is wanted.{% endif %}</p>
<ul>{% for path, operations in paths.items() %}{% for method, operation in operations.items() -%}
<li><a href="#{{ operation.operationId }}"><code>{{ method | upper }} {{ path }}</code></a>
{{ operation.description }}</li>
{% endfor %}{% endfor %}</ul>
{% for path, operations in paths.items() %}{% for method, operation in operations.items() %}
<h2 id="{{ operation.operationId }}"><code>{{ method | upper }} {{ path }}</code></h2>
<p>{{ operation.description }}{% if security and operation.security == [] %} No key is wanted.{% endif %}</p>
{% for parameter in operation.parameters or [] -%}
<p><code>{{ parameter.name }}</code> in the {{ parameter.in }}: {{ kind(parameter.schema) }}</p>
{% endfor %}{% if operation.requestBody %}
<p>Body: {{ kind(operation.requestBody.content["application/json"].schema) }}</p>{% endif %}
<table><tr><th>status</th><th>type</th><th>body</th><th>when</th></tr>
{% for status, answer in operation.responses.items() %}{% for type, told in (answer.content or {"": {}}).items() -%}
<tr><td>{{ status }}</td><td>{{ type }}</td><td>
{%- if told["x-itemSchema"] %}each event: {{ kind(told["x-itemSchema"].properties.data.contentSchema) }}
{%- else %}{{ kind(told.schema) if told else "none" }}{% endif %}</td>
<td>{{ answer.description }}</td></tr>
{% endfor %}{% endfor %}</table>
{% endfor %}{% endfor %}
<h1>Bodies</h1>
{% for name, schema in components.schemas.items() %}
<h2 id="{{ name }}"><code>{{ name }}</code></h2>
{% if schema.properties %}<table><tr><th>field</th><th>holds</th><th>default</th><th></th></tr>
{% for field, held in schema.properties.items() -%}
<tr><td><code>{{ field }}</code></td><td>{{ kind(held) }}</td>
<td>{% if field in schema.required or [] %}<span class="kind">required</span>
{%- elif "default" in held %}<code>{{ held.default | tojson }}</code>{% endif %}</td>
<td>{{ held.description }}</td></tr>
{% endfor %}</table>{% else %}<p>{{ kind(schema) }}</p>{% endif %}
{% endfor %}</body></html>
"""
_LIMITS = {
    "minimum": "≥ ",
    "exclusiveMinimum": "> ",
    "maximum": "≤ ",
    "exclusiveMaximum": "< ",
    "minItems": "length ≥ ",
    "maxItems": "length ≤ ",
    "minLength": "length ≥ ",
    "maxLength": "length ≤ ",
    "pattern": "like ",
}


def docs_page(document: Json) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True)
    environment.globals["kind"] = _kind
    return environment.from_string(_PAGE).render(document)


def _kind(schema: Json) -> Markup:
    """What a schema says, in a line."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#{}">{}</a>').format(name, name)
    if "allOf" in schema:  # the first of them, and more of the same
        return _kind(schema["allOf"][0])
    for either in ("anyOf", "oneOf"):
        if either in schema:
            return Markup(" or ").join(dict.fromkeys(map(_kind, schema[either])))
    if "const" in schema or "enum" in schema:
        return Markup(", ").join(Markup("<code>{}</code>").format(each) for each in _values(schema))
    kinds = schema.get("type", "anything")
    text = Markup(" or ").join(kinds) if isinstance(kinds, list) else Markup("{}").format(kinds)
    if kinds == "array":
        text += Markup(" of ") + _kind(schema.get("items", {}))
    elif kinds == "object" and schema.get("properties"):
        fields = [
            Markup("<code>{}</code>: {}").format(name, _kind(held)) for name, held in schema["properties"].items()
        ]
        text = Markup("{ ") + Markup(", ").join(fields) + Markup(" }")
    elif kinds == "object" and isinstance(schema.get("additionalProperties"), dict):
        text += Markup(" of ") + _kind(schema["additionalProperties"])
    limits = [f"{sign}{schema[limit]}" for limit, sign in _LIMITS.items() if limit in schema]
    return text + Markup(' <span class="kind">{}</span>').format(", ".join(limits)) if limits else text


def _values(schema: Json) -> list[str]:
    return [json.dumps(each) for each in schema.get("enum", [schema.get("const")])]
