"""Chat templates by strangers: the usual ones render, the others cannot hurt."""

from __future__ import annotations

import time

import pytest

from inference.models.template import ChatTemplate
from market.errors import ModelFileInvalid, RequestInvalid

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]"
    "['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
    "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def test_a_chatml_template_renders() -> None:
    assert ChatTemplate(CHATML).render(HELLO) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_with_sets_slices_and_methods_renders() -> None:
    text = ChatTemplate(LLAMA_2).render(HELLO, bos="<s>", eos="</s>")
    assert text == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST]"


def test_a_template_may_refuse_in_its_own_words_only() -> None:
    twice = [{"role": "user", "content": "secret"}, {"role": "user", "content": "secret"}]
    with pytest.raises(RequestInvalid, match="roles must alternate"):
        ChatTemplate(LLAMA_2).render(twice)
    with pytest.raises(RequestInvalid) as refused:
        ChatTemplate("{{ raise_exception('no: ' + messages[0]['content']) }}").render(twice)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("{{ 'a' ~ 1 ~ ('b' ~ 2) }}", "a1b2"),
        (
            "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.last }}{{ m.content }}{% endfor %}",
            "1TrueHello",
        ),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% for x in range(5) %}{% if x == 3 %}{% break %}{% endif %}{{ x }}{% endfor %}", "012"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "system, user"),
        ("{{ messages[0] | tojson }}", '{"role": "system", "content": "Be brief."}'),
        ("{{ 'a-b'.split('-')[-1].upper() }}{{ 'x' if now is defined else 'y' }}", "By"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ 'aXa'.replace('X', '-') }}", "[1]a-a"),
        ("{%- for k, v in messages[1].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content=Hello;"),
        ("{{ 'é😀' | length }}{{ 7 % 4 }}{{ 7 // 2 }}", "2" + "3" + "3"),
    ],
)
def test_what_templates_use_works(source: str, result: str) -> None:
    assert ChatTemplate(source).render(HELLO) == result


@pytest.mark.parametrize(
    "source",
    [
        "{% set x = range(9999) %}{% for a in x %}{% for b in x %}{% for c in x %}{% endfor %}{% endfor %}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s %}{{ n.s }}{{n.s}}{% endset %}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = [n.s, n.s] | join %}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = n.s.replace('a', n.s) %}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = n.s | replace('a', n.s) %}{% endfor %}",
        "{% set n = namespace(i=9) %}{% for a in range(60) %}{% set n.i = n.i * n.i %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ range(1000000000) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ 2 ** 2000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:1000000000}'['format'](1) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ lipsum(1000000) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% include 'passwd' %}",
        "{% import 'x' as x %}",
        "{% extends 'x' %}",
        "{{" + "(" * 20000 + "1" + ")" * 20000 + "}}",
        "{{ unclosed",
        "x" * 70000,
    ],
    ids=lambda source: source[:60],
)
def test_what_would_hurt_is_refused_quickly_and_in_our_terms(source: str) -> None:
    started = time.process_time()
    with pytest.raises((RequestInvalid, ModelFileInvalid)):
        ChatTemplate(source).render(HELLO)
    assert time.process_time() - started < 5


def test_a_long_conversation_is_not_too_much_work() -> None:
    long = [{"role": "user", "content": "word " * 4000}, {"role": "assistant", "content": "yes"}] * 500
    assert len(ChatTemplate(CHATML).render(long)) > 10_000_000
