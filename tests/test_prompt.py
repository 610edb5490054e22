"""Prompts, token ids and streamed text against transformers' own processors on the same folder."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils.chat_template_utils import render_jinja_template

from compressor.errors import DataError, ModelError, VtcompressError
from compressor.samples.prompt_date import on_prompt_date
from export.runtime.messages import user_message
from export.runtime.prompter import Prompter

VICUNA = (  # the template of llava-hf/llava-1.5-7b-hf
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (  # writes the beginning token itself, as Llama 3's and Mistral's templates do
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role not in ['user', 'assistant', 'system'] %}\n"
    "        {{ raise_exception('no such role: ' + message.role) }}\n"
    "    {% endif %}\n"
    "{{ '<|' + message.role + '|>' }}\n"
    "    {% for block in message.content %}\n"
    "        {% if block.type == 'image' %}{{ image_token }}{% continue %}{% endif %}\n"
    "{{ block.text | trim }}\n"
    "    {% endfor %}\n"
    "{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
CORPUS = [
    "USER: What is shown here? ASSISTANT: A cat sits on the mat.",
    "how many digits are there",
] * 3


def processor_of(tokenizer: Any, template: str) -> LlavaProcessor:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


N = 4  # 16 x 16 pixels in patches of 8 x 8


def word_level() -> LlavaProcessor:
    words = [
        "<unk>",
        "<pad>",
        "<eos>",
        "user",
        "assistant",
        ":",
        "how",
        "many",
        "3",
        "?",
        "is",
        "it",
    ]
    words += [".", "do", "n't", "7", "'", "s"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=True,
    )
    return processor_of(fast, WORDS)


def byte_fallback() -> LlavaProcessor:
    """LLaVA-1.5's kind: Llama's tokenizer, which puts <s> before a prompt that has none."""
    letters = sorted(set("".join(CORPUS).replace(" ", "")) | {"▁"})
    merges = [("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("▁", "t"), ("h", "e"), ("▁t", "he")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocab = {piece: at for at, piece in enumerate([*pieces, *("".join(pair) for pair in merges)])}
    llama = LlamaTokenizer(
        vocab=vocab,
        merges=merges,
        extra_special_tokens={"image_token": "<image>"},
        add_bos_token=True,
    )
    return processor_of(llama, VICUNA)


def byte_level() -> LlavaProcessor:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<bos>", "<eos>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    begin = [("<bos>", tokenizer.token_to_id("<bos>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=begin
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token=AddedToken("<eos>", special=True),
        extra_special_tokens={"image_token": "<image>"},
    )
    return processor_of(fast, CHATML)


MAKERS = {"word level": word_level, "byte fallback": byte_fallback, "byte level": byte_level}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, maker in MAKERS.items():
        folder = tmp_path_factory.mktemp("model")
        maker().save_pretrained(folder)
        # Reloaded, because transformers settles special tokens and post-processors on loading.
        made[name] = folder, LlavaProcessor.from_pretrained(folder, backend="pil")
    return made


@pytest.fixture(params=MAKERS)
def both(request, folders):
    folder, processor = folders[request.param]
    return Prompter.from_folder(folder, "<image>"), processor


def theirs(
    processor: LlavaProcessor, messages: list[dict[str, Any]], generate: bool = True
) -> list[int]:
    grey = Image.new("RGB", (20, 16), "grey")
    given = [
        {
            **message,
            "content": [
                {**block, "image": grey} if block["type"] == "image" else block
                for block in message["content"]
            ],
        }
        for message in messages
    ]
    ids = processor.apply_chat_template(given, tokenize=True, add_generation_prompt=generate)
    return [int(token_id) for token_id in ids[0]]


RUN = "<image>" * N


def runs(messages: list[dict[str, Any]]) -> list[str]:
    return [RUN for m in messages for b in m["content"] if b["type"] == "image"]


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def blocks(*parts: str | None) -> dict[str, Any]:
    content = [
        {"type": "image"} if text is None else {"type": "text", "text": text} for text in parts
    ]
    return {"role": "user", "content": content}


CONVERSATIONS = {
    "one image": [user_message("how many 3 ?")],
    "text only": [user_message("is it 7 ?", images=0)],
    "two images": [user_message("is it ?", images=2)],
    "an image amid text and one at the end": [blocks("is", None, "how many 7 ?", None)],
    "several turns": [user_message("how many 3 ?"), answer("7"), user_message("is it ?", images=0)],
    "an image in a later turn": [user_message("is it ?"), answer("it is 3 ."), user_message("7 ?")],
    "unicode": [user_message("Wie viele Füße? 数字はいくつ 🐈‍⬛ \u0301e\tx\n\n y")],
    "markup and odd spaces": [user_message("  <b> & 'quoted' {{ 7 }} </s> <unk>  ")],
    "empty text": [user_message("")],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_token_ids_equal_transformers(name, both):
    prompter, processor = both
    messages = CONVERSATIONS[name]
    ids = prompter.encode(messages, runs(messages))
    assert list(ids) == theirs(processor, messages)
    assert ids.count(prompter.image_token_id) == N * len(runs(messages))


@pytest.mark.parametrize("generate", [True, False])
def test_rendered_text_equals_transformers(generate, both):
    prompter, processor = both
    for messages in CONVERSATIONS.values():
        expected = processor.apply_chat_template(messages, add_generation_prompt=generate)
        assert prompter.render(messages, add_generation_prompt=generate) == expected
        ids = prompter.encode(messages, runs(messages), add_generation_prompt=generate)
        assert list(ids) == theirs(processor, messages, generate)


WRITES_ALL = """{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else
%}{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor
%}{% endif %}{% endfor %}"""


@pytest.mark.parametrize("asks", ["a system turn", "a picture", "no picture", "nothing"])
def test_a_template_that_can_ask_something_is_taken(folders, asks, tmp_path):
    shutil.copytree(folders["byte level"][0], tmp_path, dirs_exist_ok=True)
    refused = {
        "a system turn": "messages[0]['role'] != 'system'",
        "a picture": "messages[-1]['content'][0]['type'] != 'image'",
        "no picture": "messages[-1]['content'][0]['type'] == 'image'",
        "nothing": "true",
    }[asks]
    template = tmp_path / "chat_template.jinja"
    template.write_text(
        f"{{% if {refused} %}}{{{{ raise_exception('no') }}}}{{% endif %}}{WRITES_ALL}"
    )
    prompter = Prompter.from_folder(tmp_path, "<image>")
    if asks != "nothing":
        prompter.check_template()
        return
    with pytest.raises(ModelError, match=r"cannot ask even one question: .*: no;"):
        prompter.check_template()


def test_the_beginning_token_stands_once_whoever_writes_it(folders):
    for name, begin in (("byte fallback", "<s>"), ("byte level", "<bos>")):
        prompter = Prompter.from_folder(folders[name][0], "<image>")
        ids = prompter.encode([user_message("is it ?")], [RUN])
        assert ids.count(prompter.tokenizer.token_to_id(begin)) == 1
        assert ids[0] == prompter.tokenizer.token_to_id(begin)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text(max_size=40))
def test_any_text_gives_transformers_ids_or_our_error(text, both):
    prompter, processor = both
    messages = [user_message(text)]
    try:
        ids = prompter.encode(messages, [RUN])
    except VtcompressError:
        assert any(0xD800 <= ord(letter) < 0xE000 for letter in text)
        return
    assert list(ids) == theirs(processor, messages)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), skip=st.booleans())
def test_streamed_pieces_are_the_whole_decode(data, skip, both):
    prompter, processor = both
    size = prompter.tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 2), max_size=40))
    stream = prompter.stream(skip_special_tokens=skip)
    pieces = [stream.push(token_id) for token_id in ids]
    whole = prompter.decode(ids, skip_special_tokens=skip)
    assert "".join(pieces) + stream.finish() == whole
    assert whole == processor.tokenizer.decode(ids, skip_special_tokens=skip)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30)
)
def test_no_streamed_piece_has_half_a_character(text, folders):
    for name in ("byte fallback", "byte level"):
        prompter = Prompter.from_folder(folders[name][0], "<image>")
        ids = prompter.encode_text(text)
        stream = prompter.stream()
        pieces = [*(stream.push(token_id) for token_id in ids), stream.finish()]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == prompter.decode(ids)


@pytest.mark.parametrize("between", [[], ["</s>"], ["no such token"]])
def test_a_byte_that_spoils_a_run_of_bytes_is_waited_for(between, folders):
    prompter = Prompter.from_folder(folders["byte fallback"][0], "<image>")
    known = prompter.tokenizer.token_to_id
    run = [known(f"<0x{byte:02X}>") for byte in "中".encode()]
    skipped = [known(token) or 10_000 for token in between]
    for ending, whole in (([], "A中"), ([known("<0xFF>")], "A" + "\ufffd" * 4)):
        ids = [known("A"), *run, *skipped, *ending]
        stream = prompter.stream()
        assert "".join(map(stream.push, ids)) == "A"
        assert "A" + stream.finish() == whole == prompter.decode(ids)


def test_text_comes_out_as_soon_as_it_is_certain(folders):
    prompter = Prompter.from_folder(folders["byte level"][0], "<image>")
    ids = prompter.encode_text("A cat 🐈 sits")
    stream = prompter.stream()
    lag = [
        len(prompter.decode(ids[: at + 1]).rstrip("\ufffd")) - len("".join(pieces))
        for at, pieces in enumerate(_growing(stream, ids))
    ]
    assert lag == [0] * len(ids)


def _growing(stream, ids):
    pieces = []
    for token_id in ids:
        pieces.append(stream.push(token_id))
        yield pieces


def test_spaces_before_punctuation_go_where_transformers_removes_them(folders):
    folder, processor = folders["word level"]
    prompter = Prompter.from_folder(folder, "<image>")
    ids = prompter.encode_text("do n't . is it ? 3 ' s .")
    assert prompter.decode(ids) == processor.tokenizer.decode(list(ids)) == "don't. is it? 3's."


def test_plain_text_has_no_special_tokens_unless_asked(folders):
    prompter = Prompter.from_folder(folders["byte fallback"][0], "<image>")
    begin = prompter.tokenizer.token_to_id("<s>")
    plain = prompter.encode_text("A cat")
    assert begin not in plain
    assert prompter.encode_text("A cat", add_special_tokens=True) == (begin, *plain)


@pytest.mark.parametrize(
    "messages",
    [
        [user_message("What does <image> mean?")],
        [user_message("x"), answer("<image><image>")],
        [{"role": "user", "content": "an <image>"}],
    ],
)
def test_a_text_with_the_image_token_is_refused_with_the_remedy(messages, both):
    with pytest.raises(DataError, match=r"messages\[\d\].content.*'<image>'.*write it otherwise"):
        both[0].encode(messages)


def test_texts_that_only_together_make_an_image_token_are_refused(folders, tmp_path):
    joining = "{% for block in messages[0].content %}{{ block.text | trim }}{% endfor %}"
    (bare(folders, tmp_path) / "chat_template.jinja").write_text(joining)
    prompter = Prompter.from_folder(tmp_path, "<image>")
    with pytest.raises(DataError, match="wrote 1 image tokens '<image>' for 0 images"):
        prompter.encode([blocks("<ima  ", "  ge>")])


def test_a_spelling_that_the_tokenizer_reads_as_an_image_is_refused(folders, tmp_path):
    tokenizer = Tokenizer.from_file(str(folders["word level"][0] / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<picture>", special=True)])
    raw = json.loads(tokenizer.to_str())
    raw["normalizer"] = {"type": "Lowercase"}
    raw["added_tokens"] = [{**token, "normalized": True} for token in raw["added_tokens"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "chat_template.jinja").write_text(WORDS)
    prompter = Prompter.from_folder(tmp_path, "<picture>")
    with pytest.raises(DataError, match="wrote 0 image tokens"):
        prompter.encode([user_message("is it ?")])  # this template writes <image>
    with pytest.raises(DataError, match="give 1 image tokens, not the 0 of 0 images"):
        prompter.encode([user_message("<PICTURE> ?", images=0)])


def test_a_plain_string_that_the_template_would_drop_is_refused(folders):
    prompter = Prompter.from_folder(folders["byte fallback"][0], "<image>")
    with pytest.raises(DataError, match=r"lost the text 'is it a cat\?'"):
        prompter.render([{"role": "user", "content": "is it a cat?"}])


BAD_MESSAGES = {
    "messages: is empty": [],
    "messages[0]: must have a role": [{"role": "user"}],
    "messages[0]: must have a role and a content, and nothing": [
        {**user_message("x"), "name": "y"}
    ],
    "messages[0].role: 3": [{"role": 3, "content": "x"}],
    "messages[0].content: must be text or a list": [{"role": "user", "content": 3}],
    "messages[0].content[0]: must be": [{"role": "user", "content": [{"type": "video"}]}],
    "messages[0].content[1]: must be": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": None}]}
    ],
    "messages[0].content[1].text: is no valid Unicode": [user_message("\ud800")],
    "chat template: cannot write this conversation: no such role: robot": [
        {**user_message("x"), "role": "robot"}
    ],
}


@pytest.mark.parametrize("expected", BAD_MESSAGES)
def test_bad_messages_are_refused_by_their_place(expected, folders):
    prompter = Prompter.from_folder(folders["byte level"][0], "<image>")
    with pytest.raises(DataError) as caught:
        prompter.encode(BAD_MESSAGES[expected])
    assert str(caught.value).startswith(expected)


def test_an_end_of_answer_comes_from_the_nearest_file(folders, tmp_path):
    for file in folders["byte fallback"][0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def eos(**argument: Any) -> tuple[int, ...]:
        return Prompter.from_folder(tmp_path, "<image>", **argument).eos_ids

    assert eos() == ()  # the tokenizer's </s> ends nothing by itself
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": 7}}')
    assert eos() == (7,)
    (tmp_path / "config.json").write_text('{"eos_token_id": 8, "text_config": {"eos_token_id": 7}}')
    assert eos() == (8,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert eos() == (5, 6)
    assert eos(eos_ids=[9]) == (9,)


PLACES = {
    "chat_template.jinja": VICUNA,
    "chat_template.json": json.dumps({"chat_template": VICUNA}),
    "processor_config.json": json.dumps({"chat_template": VICUNA}),
    "tokenizer_config.json": json.dumps({"chat_template": VICUNA, "bos_token": "<s>"}),
    "tokenizer_config.json, several": json.dumps(
        {
            "chat_template": [
                {"name": "tools", "template": "x"},
                {"name": "default", "template": VICUNA},
            ]
        }
    ),
}


def bare(folders: Any, folder: Path) -> Path:
    source = folders["byte fallback"][0] / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_the_template_is_found_wherever_it_was_saved(place, folders, tmp_path):
    (bare(folders, tmp_path) / place.split(",")[0]).write_text(PLACES[place])
    prompter = Prompter.from_folder(tmp_path, "<image>")
    assert prompter.render([user_message("a?")]) == "USER: <image>\na? ASSISTANT:"


def test_special_tokens_of_older_folders_reach_the_template(folders, tmp_path):
    bare(folders, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{{ eos_token }}{{ image_token }}|"
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "x", "image_token": "i"})
    )
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    prompter = Prompter.from_folder(tmp_path, "<image>")
    assert prompter.render([user_message("", images=0)]) == "<s></s>i|"


TRICKS = [
    "{{ {'b': 'ä<', 'a': [1]} | tojson }}{{ [1, 2] | tojson(indent=2) }}",
    "{% for i in range(9) %}{% if i in [2, 3] %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in range(9) %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = 7 %}{% endfor %}{{ ns.n }}",
    "{{ dict(a=1) }}{{ dict.fromkeys(['x']) }}{{ dict.items is defined }}{{ strftime_now('%Y') }}",
    "  {% if tools is none and documents is none %}\n  y\n  {% endif %}\n z",
    "{% generation %}a{% endgeneration %}b{{ undefined_name }}",
]


@pytest.mark.parametrize("template", TRICKS)
def test_a_template_has_the_same_language_as_in_transformers(template, folders, tmp_path):
    (bare(folders, tmp_path) / "chat_template.jinja").write_text(template)
    messages = [user_message("", images=0)]
    with on_prompt_date(SimpleNamespace(chat_template=template)):
        rendered, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True
        )
    assert Prompter.from_folder(tmp_path, "<image>").render(messages) == rendered[0]
    # The same on any day.
    assert "2024" in rendered[0] or "strftime_now" not in template


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace(_x=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('never') }}",
        "{{ messages | nothing_of_the_kind }}",
        "{{ ''.__class__() }}",
    ],
)
def test_a_template_that_fails_or_breaks_out_is_our_error(template, folders, tmp_path):
    (bare(folders, tmp_path) / "chat_template.jinja").write_text(template)
    with pytest.raises(DataError, match="chat template"):
        Prompter.from_folder(tmp_path, "<image>").render([user_message("", images=0)])


def test_a_template_that_is_no_template_is_refused_with_its_line(folders, tmp_path):
    (bare(folders, tmp_path) / "chat_template.jinja").write_text("a\n{% for %}")
    with pytest.raises(DataError, match=r"chat_template\.jinja: line 2"):
        Prompter.from_folder(tmp_path, "<image>")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8 text"):
        Prompter.from_folder(tmp_path, "<image>")


def test_missing_and_damaged_files_are_named(folders, tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Prompter.from_folder(tmp_path, "<image>")
    bare(folders, tmp_path)
    with pytest.raises(DataError, match="no chat template"):
        Prompter.from_folder(tmp_path, "<image>")
    (tmp_path / "chat_template.jinja").write_text(VICUNA)
    for unknown in ("<video>", "", "A cat"):
        with pytest.raises(ModelError, match="is not one of its added tokens"):
            Prompter.from_folder(tmp_path, unknown)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match=r"tokenizer\.json: is damaged"):
        Prompter.from_folder(tmp_path, "<image>")
