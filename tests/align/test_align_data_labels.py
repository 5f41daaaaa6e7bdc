"""What is learnt: labels against the answers, by decoding, for many chat templates and split words."""

import pytest
import torch
from align_data_samples import composed_folder, load_processor, picture, sample, sound
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mcompose.align.data.answer_spans import mark, marking_processor
from mcompose.align.data.collator import Collator
from mcompose.align.data.conversation import PLAIN_TEMPLATE
from mcompose.align.data.labels import check_labels
from mcompose.errors import RequestError
from mcompose.modeling.processing.chat import DEFAULT_TEMPLATE

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like Qwen3's: a block is put before the last answer only, so texts of a part are no beginnings of the whole.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS_ONLY = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
NO_OPENING = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }} {% endfor %}"
CORPUS = [
    "what is it that the user sees here ? a cat, not two dogs. USER: ASSISTANT: assistant\n",
    "L'été, naïve façade: 日本語 and emoji 🐈 too.\n",
    "system user assistant be short yes no",
] * 20


@pytest.fixture(scope="module")
def pieces():
    """A byte-level tokenizer that splits words, as those of real language models do."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def learnt(batch, tokenizer, row=0):
    """The decoded label tokens, a string for each stretch."""
    strings, run = [], []
    for index in [*batch["labels"][row].tolist(), -100]:
        if index != -100:
            run.append(index)
        elif run:
            strings.append(tokenizer.decode(run))
            run = []
    return strings


TALK = (
    ("system", "be short"), ("user", "what is it ?"), ("assistant", "a cat, not two dogs."), ("user", "L'été ?"),
    ("assistant", "日本語 and 🐈"),
)  # fmt: skip
SAID = {
    DEFAULT_TEMPLATE: [" a cat, not two dogs.</s>", " 日本語 and 🐈</s>"],
    CHATML: ["a cat, not two dogs.<|im_end|>", "日本語 and 🐈<|im_end|>"],
    THINKING: ["a cat, not two dogs.<|im_end|>", "<think>\n\n</think>\n\n日本語 and 🐈<|im_end|>"],
    PARTS_ONLY: ["a cat, not two dogs.</s>", "日本語 and 🐈</s>"],
    PLAIN_TEMPLATE: ["a cat, not two dogs.</s>", "日本語 and 🐈</s>"],
    NO_OPENING: ["[assistant] a cat, not two dogs. ", "[assistant] 日本語 and 🐈 "],
}


@pytest.mark.parametrize("template", SAID)
def test_what_is_learnt_decodes_to_the_answers_exactly(pieces, template):
    collator = Collator(pieces, max_length=None, chat_template=template)
    batch = collator([sample(*TALK), sample(("user", "a"), ("assistant", "yes"))])
    found = learnt(batch, pieces)
    if template in (PARTS_ONLY, PLAIN_TEMPLATE):  # the space before an answer is the prompt's, and in its first token
        found = [words.removeprefix(" ") for words in found]
    assert found == SAID[template]
    assert "yes" in learnt(batch, pieces, 1)[0]
    here = batch["labels"] != -100
    assert torch.equal(batch["labels"][here], batch["input_ids"][here])
    check_labels([sample(*TALK)], collator)


def test_the_ids_are_those_of_the_text_without_marks(pieces):
    collator = Collator(pieces, max_length=None, chat_template=CHATML)
    text = pieces.apply_chat_template(
        [{"role": role, "content": words} for role, words in TALK], chat_template=CHATML, tokenize=False
    )
    assert collator([sample(*TALK)])["input_ids"].tolist() == [pieces(text)["input_ids"]]


def test_without_masking_all_text_is_learnt(pieces):
    batch = Collator(pieces, max_length=None, mask_answers=False, chat_template=CHATML)([sample(*TALK)])
    assert torch.equal(batch["labels"], batch["input_ids"])


def test_a_first_token_is_written_once(pieces):
    with_first = "{{ bos_token }}" + CHATML
    ids = Collator(pieces, max_length=None, chat_template=with_first)([sample(*TALK)])["input_ids"][0].tolist()
    assert ids.count(pieces.bos_token_id) == 1


def test_a_template_that_rewrites_the_past_is_refused(pieces):
    counting = "{{ messages | length }}" + CHATML
    with pytest.raises(RequestError) as caught:
        Collator(pieces, max_length=None, chat_template=counting)([sample(*TALK, place="b.json[4]")])
    assert "b.json[4]: the chat template changes the text before answer 1" in str(caught.value)


def test_a_template_that_refuses_a_talk_is_named_with_the_place(pieces):
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    with pytest.raises(RequestError, match=r"a.jsonl:1: the chat template refuses the conversation: no system"):
        Collator(pieces, max_length=None, chat_template=strict)([sample(*TALK)])


def test_characters_that_mark_are_refused_in_text():
    with pytest.raises(RequestError, match="U\\+FDD0"):
        mark("a\ufdd0b", [(0, 1)])


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(RequestError, match="Slow does not report the characters of each token"):
        marking_processor(Slow())


def test_the_marking_twin_leaves_the_tokenizer_as_it_was(pieces):
    before = pieces.padding_side, pieces("a cat")["input_ids"]
    twin, marking = marking_processor(pieces)
    assert twin(["a cat", "a"], padding=True)["attention_mask"][1][-1] == 0
    assert (pieces.padding_side, pieces("a cat")["input_ids"]) == before
    assert len(marking) == len(pieces)


# with media


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed")
    processor = load_processor(composed_folder(folder / "c"))
    files = {"image": str(picture(folder / "a.png")), "audio": str(sound(folder / "a.wav", 1600))}
    return processor, {modality: {"type": modality, "path": path} for modality, path in files.items()}


def mixed(media):
    return sample(
        ("user", media["image"], "\nwhat is it ?"), ("assistant", "a cat"), ("user", media["audio"], " what is it ?"),
        ("assistant", "the dog hears"), domain="two",
    )  # fmt: skip


def test_a_batch_of_one_is_the_processors_own_output(composed):
    from pathlib import Path

    from mcompose.media import read_media

    processor, media = composed
    batch = Collator(processor, max_length=99, domains=("one", "two"))([mixed(media)])
    text = "USER: <image>\nwhat is it ? ASSISTANT: a cat</s>USER: <audio> what is it ? ASSISTANT: the dog hears</s>"
    own = processor(
        text=text, images=read_media(Path(media["image"]["path"]), "image"),
        audio=read_media(Path(media["audio"]["path"]), "audio"), sampling_rate=8000,
    )  # fmt: skip
    assert set(batch) == {*own, "labels", "domains", "position_ids"}
    for name, value in own.items():
        assert torch.equal(batch[name], value), name
    assert batch["domains"].tolist() == [1]
    assert batch["position_ids"].tolist() == [list(range(len(batch["input_ids"][0])))]


def test_labels_behind_several_media_decode_to_the_answers(composed):
    processor, media = composed
    collator = Collator(processor, max_length=99)
    batch = collator([sample(("user", "what is it ?"), ("assistant", "two")), mixed(media)])
    tokenizer = processor.tokenizer
    assert learnt(batch, tokenizer, 0) == ["two</s>"]
    assert learnt(batch, tokenizer, 1) == ["acat</s>", "thedoghears</s>"]  # a word tokenizer writes no spaces
    assert not (batch["labels"] != -100)[batch["mm_token_type_ids"] != 0].any()
    assert batch["attention_mask"].sum(-1).tolist() == [8, 45]
    assert batch["position_ids"][0, :8].tolist() == list(range(8))
    (seen,) = check_labels([mixed(media)], collator)
    assert seen.media_tokens == {"image": 4, "audio": 20}
    assert seen.learnt == ("acat</s>", "thedoghears</s>")


def test_check_labels_finds_labels_that_stand_elsewhere(composed):
    processor, media = composed
    collator = Collator(processor, max_length=99)
    honest = collator.encode

    def shifted(samples):
        batch = honest(samples)
        here = torch.roll(batch["labels"] != -100, -1, dims=1)
        return {**batch, "labels": batch["input_ids"].masked_fill(~here, -100)}

    collator.encode = shifted
    with pytest.raises(RequestError, match="the labels do not match the answer"):
        check_labels([mixed(media)], collator)

    collator.encode = lambda samples: {**honest(samples), "labels": honest(samples)["input_ids"]}
    with pytest.raises(RequestError, match="tokens of a medium have labels"):
        check_labels([mixed(media)], collator)
    collator.encode = lambda samples: {**honest(samples), "labels": torch.full((1, 45), -100)}
    with pytest.raises(RequestError, match="no token of its answers has a label"):
        check_labels([mixed(media)], collator)


def test_long_samples_are_errors_or_cut_in_their_answer_and_never_in_a_medium(composed):
    processor, media = composed
    words = ("user", media["image"], " what is it ?"), ("assistant", "a b c d e f")
    short = sample(("user", "what"), ("assistant", "a"))
    whole = Collator(processor, max_length=None)([sample(*words)])
    assert whole["input_ids"].shape == (1, 17)
    with pytest.raises(RequestError, match=r"a\.jsonl:1: the sample has 17 tokens, and the limit is 13"):
        Collator(processor, max_length=13)([sample(*words)])
    cut = Collator(processor, max_length=13)([short, sample(*words, on_long="cut")])
    assert cut["input_ids"].shape == cut["labels"].shape == cut["position_ids"].shape == (2, 13)
    assert learnt(cut, processor.tokenizer, 1) == ["abc"]
    assert torch.equal(cut["input_ids"][1], whole["input_ids"][0, :13])
    with pytest.raises(RequestError, match="would leave no answer"):
        Collator(processor, max_length=10)([sample(*words, on_long="cut")])
    with pytest.raises(RequestError, match="would cut a medium"):
        Collator(processor, max_length=3)([sample(*words, on_long="cut")])


def test_what_a_checkpoint_cannot_take_names_the_sample(composed, pieces):
    processor, media = composed
    cloud = {"type": "points", "path": "nowhere.npy"}
    with pytest.raises(RequestError, match=r"c.json\[2\]: The points nowhere.npy is missing"):
        Collator(processor, max_length=99)([sample(("user", cloud), ("assistant", "a"), place="c.json[2]")])
    with pytest.raises(RequestError, match=r"a.jsonl:1: The checkpoint takes text only, and image came"):
        Collator(pieces, max_length=99)([sample(("user", media["image"]), ("assistant", "a"))])
    with pytest.raises(RequestError, match="the domain 'three' must be one of one, two"):
        Collator(processor, max_length=99, domains=("one", "two"))(
            [sample(("user", "a"), ("assistant", "a"), domain="three")]
        )


def test_native_processors_are_served_too(composed):
    from tiny_processors import llava

    processor, media = composed
    native = llava()
    batch = Collator(native, max_length=99)([mixed_image(media), sample(("user", "what"), ("assistant", "two"))])
    assert learnt(batch, native.tokenizer) == ["acat</s>"]
    assert learnt(batch, native.tokenizer, 1) == ["two</s>"]
    ours = Collator(processor, max_length=99)([mixed_image(media)])
    assert torch.equal(batch["pixel_values"], ours["sees__pixel_values"])
    assert (batch["mm_token_type_ids"] == 1).sum() == 4


def mixed_image(media):
    return sample(("user", media["image"], "\nwhat is it ?"), ("assistant", "a cat"))
