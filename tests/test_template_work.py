"""A chat template ends in bounded work, whatever it is: one line, within seconds, no memory filled."""

import resource
import time
from datetime import datetime
from types import SimpleNamespace

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from compressor.errors import DataError, first_line
from compressor.samples import prompt_date
from compressor.samples.prompt_date import on_prompt_date
from export.runtime.chat_template import MOST_SOURCE, compile_template
from export.runtime.template_work import LEFT_OUT, MOST_LONG, TooMuchWorkError, limited_work

GROW = "{% set ns = namespace(s='a', t=[1], u=[1]) %}{% for i in range(60) %}STEP{% endfor %}"
DOUBLED = GROW.replace("STEP", "{% set ns.t = [ns.t, ns.t] %}{% set ns.u = [ns.u, ns.u] %}")
MANY = "{% for i in range(99999) %}{% for j in range(99999) %}"
ATTACKS = {
    "loops in loops": MANY + "{% endfor %}{% endfor %}",
    "a condition of a loop": "{% for i in range(99999) %}{% for j in range(99999) if false %}"
    "{% endfor %}{% endfor %}",
    "a long body": MANY + "{% set x = 1 %}" * 3000 + "{% endfor %}{% endfor %}",
    "a long constant": MANY + "{{ '" + "a" * 9000 + "' }}{% endfor %}{% endfor %}",
    "recursive loop": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "blocks": "{% block a %}{% for i in range(9999) %}{{ self.a() }}{% endfor %}{% endblock %}",
    "text times": "{{ 'a' * 10**9 }}",
    "text times, not written": "{% set x = 'a' * 10**9 %}",
    "list times": "{% set x = [1] * 10**9 %}",
    "powers": "{% set x = 9**(9**9) %}",
    "products": GROW.replace("STEP", "{% set ns.u = 7 if i == 0 else ns.u * ns.u %}"),
    "sum of texts": GROW.replace("STEP", "{% set ns.s = ns.s + ns.s %}"),
    "tilde": GROW.replace("STEP", "{% set ns.s = ns.s ~ ns.s %}"),
    "join": GROW.replace("STEP", "{% set ns.s = [ns.s, ns.s] | join %}"),
    "join of a text": GROW.replace("STEP", "{% set ns.s = ns.s.join([ns.s, ns.s]) %}"),
    "replace": GROW.replace("STEP", "{% set ns.s = (ns.s * 10).replace('a', ns.s) %}"),
    "a block that is set": GROW.replace(
        "STEP", "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}"
    ),
    "lists in lists": DOUBLED + "{{ ns.t }}",
    "lists in lists as JSON": DOUBLED + "{{ ns.t | tojson }}",
    "lists in lists, compared": DOUBLED + "{% if ns.t == ns.u %}a{% endif %}",
    "lists in lists, sought": DOUBLED + "{% if ns.t in [ns.u] %}a{% endif %}",
    "lists in lists, selected": DOUBLED + "{{ [ns.t] | select('equalto', ns.u) | list }}",
    "a namespace": DOUBLED + "{{ ns }}",
    "centre": "{{ 'a'.center(10**10) }}",
    "centre by a filter": "{{ 'a' | center(999999999) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "format": "{{ '{:9999999999d}'.format(1) }}",
    "format inside": "{{ '{:{}d}'.format(1, 10**9) }}",
    "indent": "{{ 'a\nb' | indent(999999999) }}",
    "indent of JSON": "{{ [[[1]]] | tojson(indent=1000000) }}",
    "translate": "{{ ('a' * 1000).translate({97: 'b' * 100000}) }}",
    "tabs": "{{ ('\t' * 1000).expandtabs(100000) }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "sum of lists": "{{ ([[1] * 3000] * 3000) | sum(start=[]) | length }}",
    "sums of 300": "{{ " + "+".join(["1"] * 300) + " }}",
    "deep": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "long": "a" * (MOST_SOURCE + 1),
    **{f"filter {name}": "{{ 'a' | " + name + " }}" for name in LEFT_OUT},
    "lipsum": "{{ lipsum() }}",
}


def written(source: str, tmp_path) -> str:
    with limited_work():
        return compile_template(source, tmp_path / "chat_template.jinja").render(messages=[])


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_template_is_refused_in_one_line_in_seconds_and_fills_no_memory(attack, tmp_path) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - a template raises what it likes
        written(ATTACKS[attack], tmp_path)
    assert not isinstance(caught.value, MemoryError)
    assert first_line(caught.value)
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_what_templates_of_today_do_is_within_the_bounds(tmp_path) -> None:
    """300 turns of 2,000 characters, with what the longest templates do to each."""
    source = (
        "{% set ns = namespace(last=-1, all=[]) %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
        "{% set ns.all = ns.all + [m] %}{% endfor %}"
        "{% for m in ns.all %}{% set text = m.content | trim %}"
        "{% if '</think>' in text %}{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|' ~ m.role ~ '|>\n' + text.replace('a', 'b') }}{{ m | tojson }}{% endfor %}{{ ns.last }}"
    )
    messages = [{"role": "user", "content": f" {'ab ' * 666}{n}"} for n in range(300)]
    with limited_work():
        text = compile_template(source, tmp_path / "t").render(messages=messages)
    plain, _ = render_jinja_template([messages], chat_template=source)
    assert text == plain[0]
    assert len(text) > 1_000_000


def test_the_same_template_does_the_same_work_every_time(tmp_path) -> None:
    at = tmp_path / "t"
    near = compile_template(
        "{% for i in range(99999) %}{% for j in range(9) %}{% endfor %}{% endfor %}", at
    )
    outcomes = set()
    for _ in range(2):
        with limited_work():
            try:
                outcomes.add(near.render())
            except TooMuchWorkError as error:
                outcomes.add(str(error))
    assert len(outcomes) == 1


def test_a_template_too_long_says_so_with_its_file(tmp_path) -> None:
    with pytest.raises(DataError, match=r"chat_template\.jinja: the chat template is longer than"):
        written(ATTACKS["long"], tmp_path)
    with pytest.raises(TooMuchWorkError, match=f"longer than {MOST_LONG:,}"):
        written(ATTACKS["text times"], tmp_path)


@pytest.mark.parametrize(
    "source", ["{{ strftime_now('%d %b %Y') }}", "{% set f='%Y' %}{{ strftime_now(f) }}"]
)
def test_the_date_of_prompts_is_that_of_every_day_in_both_readings(
    source, tmp_path, monkeypatch
) -> None:
    with on_prompt_date(SimpleNamespace(chat_template=source)):
        theirs, _ = render_jinja_template([[]], chat_template=source)
    assert theirs[0] == written(source, tmp_path)
    assert "2024" in theirs[0]
    # Behind it, transformers is as it was.
    assert str(datetime.now().year) in render_jinja_template([[]], chat_template=source)[0][0]
    monkeypatch.setattr(prompt_date, "PROMPT_DATE", datetime(1999, 1, 1))
    assert "1999" in written(source, tmp_path)
