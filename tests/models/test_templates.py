"""Chat templates are programs by other people; each of them ends with a text or an error."""

import datetime
import os
import signal
import time

import pytest

from shatter.models import templates
from shatter.models.tokenizer import CHAT_TEMPLATES, Tokenizer

pytest.importorskip("jinja2", reason="it is an extra")

MESSAGES = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "b"}]
BASE = Tokenizer({"tokenizer.json": b"{}"}, None, {"eos_token": "</s>"}, None, 1, None, False, 6)


def test_plain_template():
    tokenizer = BASE.with_chat_template("plain")
    assert tokenizer.chat_template == CHAT_TEMPLATES["plain"]
    assert tokenizer.render_chat(MESSAGES) == "User: a b\nAssistant: b"
    prompt = tokenizer.render_chat(MESSAGES[:1], add_generation_prompt=True)
    assert prompt == "User: a b\nAssistant:"
    assert tokenizer.render_chat(MESSAGES).startswith(prompt)


def test_template_refuses():
    template = "{{ raise_exception('turns must alternate') }}"
    tokenizer = BASE.with_chat_template(template)
    with pytest.raises(ValueError, match=r"\['user', 'assistant'\]: turns must alternate"):
        tokenizer.render_chat(MESSAGES)


def test_template_runs_in_a_sandbox():
    template = "{{ messages.append(1) }}"
    tokenizer = BASE.with_chat_template(template)
    with pytest.raises(ValueError, match="is unsafe"):
        tokenizer.render_chat(MESSAGES)


def test_template_is_no_jinja():
    with pytest.raises(ValueError, match="the chat template cannot be compiled by jinja: line 2"):
        BASE.with_chat_template("\n{% for %}")


def test_template_reads_the_date():
    tokenizer = BASE.with_chat_template("{{ strftime_now('%Y') }}")
    assert 2025 < int(tokenizer.render_chat([])) < 2200


DATED = [
    "{{ strftime_now('%d %b') }}",
    "{% if not date is defined %}{% set date = strftime_now('%d %b') %}{% endif %}{{ date }}",
    "{% macro head(form) %}{{ strftime_now(form) }}{% endmacro %}{{ head('%d %b') }}",
]


@pytest.mark.parametrize("template", DATED)
def test_a_date_of_its_own_takes_the_clock_away(template: str):
    tokenizer = BASE.with_chat_template(template)
    assert tokenizer.asks_for_date
    winter = tokenizer.with_date(datetime.datetime(2019, 1, 31, 23, 59))
    assert winter.render_chat(MESSAGES) == "31 Jan"
    assert winter.with_date(datetime.datetime(2020, 2, 1)).render_chat(MESSAGES) == "01 Feb"
    dates = [datetime.datetime(2019, 1, 31, 23, 59), datetime.datetime(2020, 2, 1)]
    hashes = {tokenizer.with_date(date).fingerprint() for date in dates}
    assert len(hashes | {tokenizer.fingerprint()}) == 3
    assert winter.fingerprint() == tokenizer.with_date(dates[0]).fingerprint()


@pytest.mark.parametrize("template", ["plain", "strftime_now", "{{ 'strftime_now' }}", None])
def test_a_template_that_asks_for_no_date_has_none_in_its_fingerprint(template: str | None):
    tokenizer = BASE
    tokenizer = tokenizer if template is None else tokenizer.with_chat_template(template)
    assert not tokenizer.asks_for_date
    dated = tokenizer.with_date(datetime.datetime(2019, 1, 31))
    assert dated.fingerprint() == tokenizer.fingerprint()


CALL = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
SHOWN = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"content": None, "tool_calls": [CALL]}, f"Assistant: {SHOWN}"),
        ({"tool_calls": [CALL, CALL]}, f"Assistant: {SHOWN}\n{SHOWN}"),
        ({"content": "Wait.", "tool_calls": [CALL]}, f"Assistant: Wait.\n{SHOWN}"),
        ({"content": None, "tool_calls": [{"type": "function", "function": CALL}]}, None),
        ({"content": "", "tool_calls": None}, "Assistant: "),
    ],
)
def test_plain_shows_the_calls_of_tools(answer: dict, expected: str | None):
    tokenizer = BASE.with_chat_template("plain")
    messages = [MESSAGES[0], {"role": "assistant"} | answer, {"role": "tool", "content": "sun"}]
    expected = f"Assistant: {SHOWN}" if expected is None else expected
    assert tokenizer.render_chat(messages) == f"User: a b\n{expected}\nTool: sun"


def test_templates_see_what_transformers_gives_them():
    """A missing content is None, tool calls are unchanged, and all usual names are there."""
    source = (
        "{%- for m in messages -%}{% if m.content is none %}{{ m.tool_calls[0].arguments.city }}"
        "{% else %}{{ m.content | trim }}{% endif %}{% generation %}{{ eos_token }}"
        "{% endgeneration %}{%- endfor -%}{{ tools is none }}{{ {'é': [1, none]} | tojson }}"
        "{% for n in range(9) %}{% if n == 1 %}{% break %}{% endif %}{{ n }}{% endfor %}"
    )
    messages = [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    found = BASE.with_chat_template(source).render_chat(messages)
    assert found == 'a b</s>Rome</s>True{"é": [1, null]}0'


RAISES = {
    "{{ 7 % 0 }}": "ZeroDivisionError",
    "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}": "RecursionError",
    "{{ 3.0 ** 5000 }}": "OverflowError",
    "{{ 'é'.encode('latin-2000') }}": "LookupError",
    "{{ '\\udfff' }}": "UnicodeEncodeError",
    "{{ messages[9].content }}": "has no element 9",
    "{{ [].__class__.__base__ }}": "unsafe",
    "{{ strftime_now(7) }}": "TypeError",
    "{% include 'other' %}": "TypeError",
    "{{ '%d' % 'a' }}": "TypeError",
}
TOO_MUCH = {
    "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "for ever",
    "{{ 2.5 | round(10 ** 9, 'floor') }}": "for ever",
    "{{ 'ab' * 10 ** 11 }}": "memory",
    "{{ 'a'.rjust(10 ** 17) }}": "memory",
    "{{ '%2000000000s' % 1 }}": "memory",
    "{{ '{:>{w}}'.format(1, w=10 ** 10) }}": "memory",
    "{{ 'a' | center(10 ** 11) }}": "memory",
    "{{ messages | tojson(indent=10 ** 10) }}": "memory",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}": "memory",
    "{{ 'abc' * 5000000 }}": "15000000 characters",
}


@pytest.mark.parametrize(("source", "said"), [*RAISES.items(), *TOO_MUCH.items()])
def test_whatever_a_template_does_is_an_error_that_names_it(source: str, said: str):
    start = time.process_time()
    with pytest.raises(ValueError, match=f"^the chat template of x.jinja (refuses|cannot).*{said}"):
        BASE.with_chat_template(source, name="of x.jinja").render_chat(MESSAGES)
    assert time.process_time() - start < 1  # because another process does the work
    assert BASE.with_chat_template("plain").render_chat(MESSAGES[:1]) == "User: a b"


DEEP = 30000


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "[" * DEEP + "]" * DEEP + " }}",
        "{{ " + "not " * DEEP + "1 }}",
        "{% if 1 %}" * DEEP + "{% endif %}" * DEEP,
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ 'a' | no_such_filter }}",
        "{{ 'a' | random }}",
        "{% endraw %}",
        "half \ud83d",
        "a" * (templates.MAX_SOURCE + 1),
        "\ud800{{",
    ],
)
def test_what_cannot_be_compiled_is_refused_before_it_is_used(source: str):
    with pytest.raises(ValueError, match=r"^the chat template cannot be compiled by jinja: "):
        BASE.with_chat_template(source)


def test_a_conversation_beyond_all_measure_is_refused():
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    with pytest.raises(ValueError, match="refuses a conversation with the roles"):
        BASE.with_chat_template("{{ 1 }}").render_chat([{"role": "user", "content": deep}])


def test_a_worker_that_was_killed_is_replaced():
    tokenizer = BASE.with_chat_template("{{ messages | length }}")
    assert tokenizer.render_chat(MESSAGES) == "2"
    assert templates._worker is not None
    _, process = templates._worker
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert tokenizer.render_chat(MESSAGES) == "2"


def test_a_template_beyond_its_bounds_is_given_up_and_others_are_not(monkeypatch):
    source = "{{ 'ab' * (messages | length - 1) * 10 ** 11 }}{{ messages | length }}"
    tokenizer = BASE.with_chat_template(source)
    exchange, tries = templates._exchange, []
    monkeypatch.setattr(
        templates, "_exchange", lambda *request: tries.append(1) or exchange(*request)
    )

    def fail(num: int) -> int:
        tries.clear()
        for _ in range(num):
            with pytest.raises(ValueError, match="MiB of memory"):
                tokenizer.render_chat(MESSAGES)
        return len(tries)

    assert fail(templates.MAX_FAILURES - 1) == templates.MAX_FAILURES - 1
    assert (
        tokenizer.render_chat(MESSAGES[:1]) == "1"
    )  # it has rendered, so its failures are forgotten
    assert fail(99) == templates.MAX_FAILURES
    with pytest.raises(ValueError, match="MiB of memory"):
        tokenizer.render_chat(MESSAGES[:1])
    assert BASE.with_chat_template("plain").render_chat(MESSAGES[:1]) == "User: a b"
