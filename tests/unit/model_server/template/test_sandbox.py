"""Chat templates that do too much end at once; those that models come with render as transformers renders them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from services.model_server import sandbox
from services.model_server.template import ChatTemplate, Message, PromptEncoder, UnsupportedTemplate
from services.model_server.vocabulary import Vocabulary
from shared import errors
from tests.fakes.tiny_model import TEMPLATE, tiny_tokenizer

VOCABULARY = Vocabulary(tiny_tokenizer().to_str().encode())
CONTENT = "{% for m in messages %}{{ m.content }}{% endfor %}"
# In the manner of Qwen3, Llama 3 and Mistral: what their templates use, in a few lines.
THINKING = (
    "{%- set ns = namespace(last=-1, found=false) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if not ns.found and message.role == 'user' and not (message.content.startswith('<r>') and "
    "message.content.endswith('</r>')) %}{%- set ns.last = index %}{%- set ns.found = true %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content %}{%- set thought = '' %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- message['role'] ~ ':' + content|trim + '\\n' }}{% if loop.index0 > ns.last and thought %}{{ thought }}{% endif %}"
    "{%- if 'tool_calls' in message %}{{ message.tool_calls|tojson(indent=2) }}{% endif %}{%- endfor %}"
)
MACROS = (
    "{% macro turn(m, n) %}{{ '%s %d' % (m.role, n) }}{% set text %}{{ m.content | replace('a', 'bb') }}{% endset %}"
    "{{ text }}{% endmacro %}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set first = messages[0].content.strip() %}{% else %}{% set rest = messages %}{% set first = none %}{% endif %}"
    "{% if first is defined and first is not none %}{{ first }}{% endif %}"
    "{% for m in rest if m.content is string %}{% generation %}{{ turn(m, loop.index) }}{% endgeneration %}"
    "{% if loop.index % 4 == 0 %}{% continue %}{% endif %}{{ m|tojson }}{% for k, v in m|items %}{{ k }}{% endfor %}"
    "{% for k in m.keys() %}{{ k|upper }}{% endfor %}{{ 'x' * 3 }}{% endfor %}"
    "{{ rest|map(attribute='role')|join(', ') }}{{ rest|selectattr('role', 'equalto', 'user')|list|length }}"
    "{{ 2 ** 3 }}{{ 7 // 2 }}{{ rest|rejectattr('role', '==', 'user')|map(attribute='content')|list|first|default('-') }}"
    "{{ dict(a=1)|tojson }}{{ range(3)|list|string }}{{ 'a\\nb'|indent(2) }}{% if add_generation_prompt %}>{% endif %}"
)
RUNAWAYS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that choose nothing": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive block": "{% set n = 1 %}{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "repeated text": "{% set x = 'a' * 3000000000 %}",
    "repeated list": "{% set x = 3000000000 * [1] %}",
    "doubled text": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "joined text": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "text by macro": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set x %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = x %}{% endfor %}",
    "static text": "{% for a in range(99999) %}" + "x" * 60_000 + "{% endfor %}",
    "static text in a macro": "{% set x %}{% for a in range(99999) %}" + "x" * 60_000 + "{% endfor %}{% endset %}",
    "width": "{{ '%1500000000d' % 1 }}",
    "width by filter": "{{ '%1500000000d'|format(1) }}",
    "starred width": "{{ '%*d' % (1500000000, 1) }}",
    "format method": "{{ '{:>1500000000}'.format(1) }}",
    "format by map": "{{ ['{:>1500000000}']|map('format', 1)|list }}",
    "centre": "{{ 'x'.center(1500000000) }}",
    "zeros": "{{ 'x'.zfill(1500000000) }}",
    "tabs": "{{ '\\t'.expandtabs(1500000000) }}",
    "centre filter": "{{ 'x'|center(1500000000) }}",
    "indentation": "{{ 'x\\nx'|indent(1500000000) }}",
    "JSON indentation": "{{ [1]|tojson(indent=1500000000) }}",
    "lorem ipsum": "{{ lipsum(n=99999999) }}",
    "power": "{{ 10 ** 1000000000 }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "replacement": "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "replacement filter": "{{ ('a' * 9999)|replace('', 'b' * 9999) }}",
    "separator": "{{ range(99999)|join('b' * 9999) }}",
    "separator method": "{{ ('b' * 9999).join(['a'] * 9999) }}",
    "many references to one text": "{{ ([['b' * 9999] * 999] * 9)|string }}",
    "a namespace of one text": "{% set n = namespace(x=['b' * 9999] * 9999) %}{{ n }}",
    "a view of one text": "{{ dict(x=['b' * 9999] * 9999).values() }}",
    "stripping": "{% set a = 'a' * 99999 %}{% set b = 'b' * 9999 + 'a' %}{{ a.strip(b) }}",
    "comparing": "{% set a = 'a' * 999999 %}{% set b = a + '' %}{% for i in range(9999) %}{{ a == b }}{% endfor %}",
    "searching": "{% set a = 'a' * 999999 %}{% for i in range(9999) %}{{ 'b' in a }}{% endfor %}",
    "slicing": "{% set a = 'a' * 999999 %}{% for i in range(9999) %}{% set b = a[1:] %}{% endfor %}",
    "chained filters": "{% set a = range(99999) %}{{ a" + "|map('string')" * 99 + "|list|length }}",
    "a budget of its own": "{% set x = (-99999999999)|_tick %}",
    "a budget that is no number": "{% set x = ['nan'|float]|map('_tick')|list %}",
}


def encoder(text: str) -> PromptEncoder:
    return PromptEncoder(ChatTemplate(text=text, bos_token="<|im_start|>", eos_token="<|im_end|>"), VOCABULARY)


@pytest.mark.parametrize("text", RUNAWAYS.values(), ids=RUNAWAYS.keys())
def test_a_template_that_does_too_much_is_refused_at_import(text: str) -> None:
    with pytest.raises(UnsupportedTemplate):
        encoder(text + CONTENT)


def test_a_template_that_does_too_much_with_some_conversations_is_refused_at_the_call() -> None:
    prompts = encoder("{% if messages|length > 1 %}" + RUNAWAYS["nested loops"] + "{% endif %}" + CONTENT)
    turn = Message(role="user", content="hi")
    assert prompts.encode([turn])
    with pytest.raises(errors.InvalidArgument, match="too much"):
        prompts.encode([turn, turn])
    assert prompts.encode([turn])


conversations = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.text(max_size=20)
            | st.sampled_from(["<think>\na\n</think>\nb", "</think>", "<r>a</r>", " \n"]),
        }
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("text", [TEMPLATE, THINKING, MACROS])
@given(chat=conversations)
def test_a_template_renders_as_transformers_renders_it(text: str, chat: list[dict[str, str]]) -> None:
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    (expected,), _ = render_jinja_template([chat], chat_template=text, add_generation_prompt=True, **variables)
    compiled = sandbox.environment().from_string(text)
    known = {"messages": chat, "add_generation_prompt": True, "tools": None, "documents": None} | variables
    assert sandbox.render(compiled, known, budget=1 << 23, limit=1 << 20) == expected


@pytest.mark.parametrize("text", [TEMPLATE, THINKING, MACROS])
@pytest.mark.parametrize("count", [1, 128])
def test_the_longest_conversation_of_the_contract_is_within_the_budget(text: str, count: int) -> None:
    turn = Message(role="user", content=json.dumps(["word"] * (130_000 // count)))
    assert encoder(text)._render([turn] * count)
