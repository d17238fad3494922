"""Chat templates: the same text as transformers gives, helpers, sandbox, refusals."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from semipd_engine.cards.chat_template import ChatTemplateError, ChatTemplates
from semipd_engine.server import chat
from semipd_engine.server.errors import ApiError

pytestmark = pytest.mark.unit

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{% endif %}"""
TOOLS = """\
{{ bos_token }}{% for tool in tools or [] %}
    {% if loop.index > 2 %}{% break %}{% endif %}
{{ tool | tojson(indent=2) }}
{% endfor %}
{% set ns = namespace(count=0) %}
{% for message in messages %}
    {% set ns.count = ns.count + 1 %}
    {% if message.tool_calls is defined and message.tool_calls %}
{{ ns.count }} {{ message.tool_calls[0].function.arguments | tojson }} <&>
    {% else %}
{% generation %}{{ ns.count }}: {{ message.content }}{% endgeneration %}

    {% endif %}
{% endfor %}{% if thinking | default(true) %}<think>{% endif %}"""
USER = {"role": "user", "content": " What is <b>? "}
TOOL = {"type": "function", "function": {"name": "größe", "description": "a < b"}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"q": "é<"}}}]}


@pytest.mark.parametrize("template", [CHATML, TOOLS])
@pytest.mark.parametrize("messages", [[USER], [{"role": "system", "content": "s"}, USER, CALL, USER]])
@pytest.mark.parametrize("tools", [None, [TOOL, TOOL, TOOL]])
@pytest.mark.parametrize("variables", [{}, {"thinking": False}])
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers_does(
    template: str, messages: list[Any], tools: list[Any] | None, variables: dict[str, Any], prompt: bool
) -> None:
    ours = ChatTemplates({"default": template}, {"bos_token": "<s>"}).render(
        messages, tools, add_generation_prompt=prompt, variables=variables
    )
    theirs, _ = render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=prompt, bos_token="<s>", **variables
    )
    assert ours == theirs[0]


def test_the_last_message_can_be_continued() -> None:
    templates = ChatTemplates({"default": CHATML}, {})
    text = templates.render(
        [USER, {"role": "assistant", "content": "It is "}], add_generation_prompt=False, continue_final_message=True
    )
    assert text.endswith("<|im_start|>assistant\nIt is ")


def test_strftime_now() -> None:
    day = datetime.datetime(2024, 2, 29)
    assert ChatTemplates({"default": "{{ strftime_now('%d %b %Y') }}"}, {}, lambda: day).render([USER]) == "29 Feb 2024"


def test_a_template_for_tools_serves_requests_with_tools() -> None:
    templates = ChatTemplates({"default": "plain", "tool_use": "tools"}, {})
    assert [templates.render([USER], tools) for tools in (None, [TOOL])] == ["plain", "tools"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].missing.field }}", "no attribute"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for", "broken"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "broken: too many statically nested blocks"),
        ("{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "broken: maximum recursion depth"),
        (None, "no chat template"),
    ],
)
def test_a_failing_template_says_so(template: str | None, words: str) -> None:
    templates = ChatTemplates({} if template is None else {"default": template}, {})
    with pytest.raises(ChatTemplateError, match=words):
        templates.render([USER])


def test_clients_cannot_replace_the_messages() -> None:
    templates = ChatTemplates({"default": "{{ messages | length }}{{ bos_token }}"}, {"bos_token": "<s>"})
    assert templates.render([USER], variables={"messages": [1, 2, 3], "bos_token": "!"}) == "1!"


def test_messages_are_normalised() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"function": {"name": "f", "arguments": '{"q": 1}'}}
    normal = chat.normalise([{"role": "user", "content": parts}, {"role": "assistant", "tool_calls": [call]}])
    assert normal[0]["content"] == "a\nb"
    assert normal[1]["content"] == "" and normal[1]["tool_calls"][0]["function"]["arguments"] == {"q": 1}
    (cut,) = chat.normalise([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}])
    assert cut["tool_calls"][0]["function"]["arguments"] == "{", "a model's own words are shown as they are"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "x"}, "messages.0.role"),
        ({"role": 3, "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0"),
        ({"role": "assistant", "tool_calls": 3}, "messages.0.tool_calls"),
    ],
)
def test_a_bad_message_is_named(message: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat.normalise([message])
    assert (refused.value.status, refused.value.param) == (400, param)


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a loop that recurses": "{% for x in [1] recursive %}{{ loop(range(99999)) if loop.depth < 4 }}{% endfor %}",
    "loops that pass all by": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "products of products": "{% set ns = namespace(n=3) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}"
    "{% endfor %}",
    "a text": "{{ 'ab' * 10 ** 10 }}",
    "a list": "{% for i in 10 ** 10 * [messages] %}{% endfor %}",
    "words": "{{ lipsum(n=1000000000) }}",
    "a width": "{{ 'a' | center(10 ** 9) }}",
    "a method's width": "{{ 'a'.rjust(10 ** 9) }}",
    "a width by map": "{{ ['a'] | map('center', 10 ** 9) | list }}",
    "zeros": "{{ 'a'.zfill(10 ** 9) }}",
    "an indent": "{{ messages | tojson(indent=10 ** 9) }}",
    "lines moved in": "{{ ('\\n' * 100000) | indent(1000, blank=true) }}",
    "tabs": "{{ ('\\t' * 100000).expandtabs(1000) }}",
    "a replacement": "{{ ('a' * 10000) | replace('a', 'b' * 10000) }}",
    "a method's replacement": "{{ ('a' * 10000).replace('a', 'b' * 10000) }}",
    "a separator": "{{ (['a'] * 10000) | join('b' * 10000) }}",
    "a method's separator": "{{ ('b' * 10000).join(['a'] * 10000) }}",
    "one text many times": "{{ (['b' * 10000] * 10000) | join }}",
    "a format": "{{ '%999999999d' % 1 }}",
    "a format by its argument": "{{ '%*d' % (999999999, 1) }}",
    "a filter's format": "{{ '%999999999d' | format(1) }}",
    "a method's format": "{{ '{:>999999999}'.format(1) }}",
    "a named place": "{{ '%(a)99999999d' | format(a=1) }}",
    "a width in a width": "{{ '{:>{}}'.format(1, 999999999) }}",
    "one argument many times": "{{ ('{0}' * 10000).format('a' * 10000) }}",
    "twice itself": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "twice itself, joined": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}",
    "a list of itself, shown": "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ ns.x }}",
    "a list of itself, as JSON": "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ ns.x | tojson }}",
    "a list of itself, as text": "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ (ns.x | string) ~ '' }}",
    "namespaces of themselves": "{% set ns = namespace(x=1) %}{% for i in range(60) %}"
    "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "many copies": "{% set ns = namespace(x=[]) %}{% set y = 'a' * 10000000 %}{% for i in range(99999) %}"
    "{% set ns.x = ns.x + [y[1:]] %}{% endfor %}",
    "many letters": "{% set y = 'a' * 10000000 %}{% for i in range(99999) %}{{ y }}{% endfor %}",
    "many results": "{% set y = 'a' * 10000000 %}{% for i in range(99999) %}{% set z = y | upper %}{% endfor %}",
    "lists of lists": "{{ ([messages * 1000000] * 1000) | sum(start=[]) }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_an_end_is_a_refusal_and_hangs_nobody(name: str) -> None:
    """Not the start, where it is probed, and no request."""
    templates = ChatTemplates({"default": ENDLESS[name]}, {})
    with pytest.raises(ChatTemplateError, match=r"more than|'lipsum' is undefined"):
        templates.render([USER])


def test_what_is_bounded_is_one_rendering_and_a_long_conversation_is_far_from_it() -> None:
    templates = ChatTemplates({"default": TOOLS}, {})
    long = [USER, {"role": "assistant", "content": "yes"}] * 10_000
    assert [len(templates.render(long)) for _ in range(3)] == [len(templates.render(long))] * 3


OPERATIONS = (
    "{{ 'a' ~ 1 ~ nothing ~ none }}{{ [1, 'é'] | tojson }}{{ messages[1:] | length }}{{ 'abc'[::-1] }}{{ nothing }}"
    "{{ '%s-%03d' % ('x', 7) }}{{ '{}:{:>5}'.format('a', 'b') }}{{ 'a,b' | replace(',', ';') }}{{ 'x' | center(9) }}"
    "{{ 'on 20241231: %s, %d%%' % ('x', 7) }}{{ '{{a: {}}} in 123456' .format(1) }}{{ '%(a)5s' | format(a=1) }}"
    "{{ 'a b'.split() | join('/') }}{{ messages | map(attribute='role') | join(', ') }}{{ [[1], [2]] | sum(start=[]) }}"
    "{{ 'p\\nq' | indent(2) }}{{ [3, 1] | sort }}{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}{{ '-'.join('xyz') }}"
    "{% set text %}{{ 1 + 2 }}{{ [1] + [2] }}{% endset %}{{ text | upper }}{{ [1, 2, 3] | batch(2) | list }}"
    "{{ namespace(a=1) }}{{ messages[0] }}{{ 'tab\\t'.expandtabs(4) }}{{ (1, 2) | string | trim }}{{ 7 % 4 }}"
)


def test_loops_know_their_ends_as_ever() -> None:
    """Their length, neighbours and else; filters and recursion."""
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.previtem is defined }}"
        "{{ loop.nextitem is defined }} {% else %}none{% endfor %}{% for m in nothing %}{% else %}none{% endfor %}"
        "{% for k, v in {'a': 1}.items() if v %}{{ k }}{{ loop.length }}{% endfor %}"
        "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is not number else x }}{{ loop.depth }}{% endfor %}"
        "{{ '-' * 3 }}{{ 2 ** 3 * 1.5 }}{{ -2 ** 2 }}{{ 'x' * -1 }}{{ true * 'y' }}"
    )
    ours = ChatTemplates({"default": source + OPERATIONS}, {}).render([USER, USER])
    theirs, _ = render_jinja_template([[USER, USER]], chat_template=source + OPERATIONS, add_generation_prompt=True)
    assert ours == theirs[0] and "1/2" in ours
