"""MCUB-style sets: groups and questions worked out by hand, and a set that our own reader scores."""

from __future__ import annotations

import json
import sys
import types
from collections import Counter

import numpy as np
import pytest
from mini_sets import MODALITIES, SUFFIX, Scripted, chat_server, write_media

from mcompose.errors import OutputError, RequestError
from mcompose.evaluate import Endpoint, evaluate_task, load_task
from mcompose.evaluate.commonality import (
    EndpointWriter,
    Entity,
    Group,
    MakeSettings,
    TemplateWriter,
    embedder,
    group_entities,
    make_sets,
    read_captions,
    tfidf,
)
from mcompose.evaluate.commonality.words import content_words
from mcompose.evaluate.judge_cache import JudgeCache

TOPICS = (
    "dog grass",
    "train station",
    "violin stage",
    "rain street",
    "horse field",
    "boat harbour",
    "cat sofa",
    "drum parade",
)


def write_captions(folder, topics=TOPICS, modalities=MODALITIES):
    """One entity per topic and modality; all captions of a topic share its words, and each has one of another topic."""
    write_media(folder / "media", count=len(topics))
    rows = [
        {
            "modality": m,
            "path": f"media/{m}-{i}.{SUFFIX[m]}",
            "caption": f"A {topic} and {topics[(i + k) % len(topics)].split()[0]}",
        }
        for i, topic in enumerate(topics)
        for k, m in enumerate(modalities, start=1)
    ]
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Two dogs are barking at the barn", {"dog": "dogs", "bark": "barking", "barn": "barn"}),
        ("A dog barks; glass", {"dog": "dog", "bark": "barks", "glass": "glass"}),
        ("parties, boxes", {"party": "parties", "box": "boxes"}),
        ("someone is running", {"run": "running"}),
        ("an image of it", {}),
    ],
)  # fmt: skip
def test_evaluate_words_of_captions(caption, words) -> None:
    assert content_words(caption) == words


def test_evaluate_tfidf_is_cosine_of_words() -> None:
    vectors = tfidf(["a dog barks", "dogs barking", "a violin", "of the"])
    assert vectors[0] @ vectors[1] == pytest.approx(1.0, abs=1e-6)
    assert abs(float(vectors[0] @ vectors[2])) < 0.1
    assert np.linalg.norm(vectors[:3], axis=1) == pytest.approx(1.0, abs=1e-6)
    assert not vectors[3].any()


def test_evaluate_groups_take_the_nearest_and_each_entity_once() -> None:
    def entity(modality, name):
        return Entity(modality, name, name)

    entities = [entity("image", "i0"), entity("image", "i1"), entity("audio", "a0"), entity("audio", "a1")]
    angles = np.deg2rad([0, 20, 10, 90])  # both pictures are nearest to a0: i0 and i1 at 10 degrees
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    groups = group_entities(entities, vectors, ("image", "audio"))
    assert [[e.path for e in g.members] for g in groups] == [["i0", "a0"], ["i1", "a1"]]
    assert [g.similarity for g in groups] == pytest.approx([np.cos(np.deg2rad(10)), np.cos(np.deg2rad(70))], abs=1e-6)
    assert len(group_entities(entities, vectors, ("image", "audio"), min_similarity=0.9)) == 1
    twice = group_entities(entities, vectors, ("image", "audio"), reuse=2, min_similarity=0.9)
    assert [[e.path for e in g.members] for g in twice] == [["i0", "a0"], ["i1", "a0"]]
    assert group_entities(entities, vectors, ("image", "video")) == []


def test_evaluate_similarity_of_a_group_is_its_loosest_pair() -> None:
    entities = [Entity(m, m, m) for m in ("image", "audio", "video")]
    angles = np.deg2rad([0, 30, 80])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    (group,) = group_entities(entities, vectors, ("image", "audio", "video"))
    assert group.similarity == pytest.approx(np.cos(np.deg2rad(80)), abs=1e-6)


def test_evaluate_template_answer_is_shared_and_wrong_options_are_not(tmp_path) -> None:
    captions = ["a dog in a park near water", "barking dog and wind", "dogs chase a red ball in the park"]
    others = [
        "wind over water",
        "a park with water",
        "a ball game in the wind",
        "violin and drum",
        "drum, violin",
        "violin",
    ]
    members = tuple(Entity(m, tmp_path / m, c) for m, c in zip(("image", "audio", "video"), captions, strict=True))
    rest = [Entity(m, tmp_path / "x", c) for m, c in zip(("image", "audio", "video") * 2, others, strict=True)]
    (asked,) = TemplateWriter([*members, *rest]).write([Group(members, 0.5)])
    assert asked is not None
    assert asked.common == "dog"
    said = [set(content_words(c).values()) for c in captions]
    assert all(0 < sum(wrong in words for words in said) < 3 for wrong in asked.distractors)
    (plain,) = TemplateWriter([*members, *rest], partial=0).write([Group(members, 0.5)])
    assert plain is None  # only 'violin' and 'drum' hold for none of the inputs
    assert TemplateWriter([*members, *rest]).write([Group((members[1], rest[3]), 0.1)]) == [None]


def made(folder, **settings):
    entities = read_captions(write_captions(folder))
    writer = TemplateWriter(entities, seed=settings.get("seed", 0))
    return make_sets(
        entities, folder / "set", embedding=("tfidf", tfidf), writer=writer, settings=MakeSettings(**settings)
    )


def test_evaluate_made_sets_are_scored_by_our_reader(tmp_path) -> None:
    sets = made(tmp_path, sizes=(3, 4))
    assert [(s.name, s.questions) for s in sets] == [
        ("mcub-3-image-audio-video", 8),
        ("mcub-3-image-audio-points", 8),
        ("mcub-3-image-video-points", 8),
        ("mcub-3-audio-video-points", 8),
        ("mcub-4", 8),
    ]
    gold = {
        row["id"]: row["conversations"][-1]["value"]
        for row in json.loads((tmp_path / "set/mcub-answer.json").read_text())
    }
    assert len(gold) == 40
    for one in sets:
        task = load_task(one.card)
        rows = json.loads(task.file.with_suffix(".json").read_text())
        captions = {row["id"]: [text.lower().split() for text in row["captions"].values()] for row in rows}
        assert (task.metric, task.chance, task.modalities) == (
            "joint_letter",
            0.25,
            tuple(m for m in MODALITIES if m in one.modalities),
        )
        assert Counter(item.answer for item in task.items) == dict.fromkeys("ABCD", 2)
        perfect = evaluate_task(Scripted([gold[item.id] for item in task.items]), task)
        assert all(p.right for p in perfect)
        for item in task.items:
            shown = {x.path.stem.split("-")[1] for x in item.inputs}
            assert len(shown) == 1, "entities of one topic are grouped"
            said = captions[item.id]
            in_all = [letter for letter, word in item.choices.items() if all(word in text for text in said)]
            assert in_all == [item.answer]
            in_some = [letter for letter, word in item.choices.items() if any(word in text for text in said)]
            assert in_some == list("ABCD"), "wrong options are half true"
    record = json.loads((tmp_path / "set/mcub-4.json").read_text())[0]
    assert list(record["modal_inputs"]) == ["vision", "audio", "video", "point"]
    assert record["modal_inputs"]["vision"][0].startswith("../media/image-")
    assert record["conversations"][1] == {"from": "gpt", "value": None}
    told = json.loads((tmp_path / "set/mcub-made.json").read_text())
    assert (told["settings"]["embedding"], told["settings"]["writer"]) == ("tfidf", "templates")
    assert load_task(tmp_path / "set/mcub-4.json").items == load_task(tmp_path / "set/mcub-4.yaml").items


def test_evaluate_same_seed_same_bytes(tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        made(tmp_path / name, sizes=(2,), seed=seed, count=5)
    files = sorted(p.name for p in (tmp_path / "a/set").iterdir())
    assert len(files) == 6 * 2 + 2
    same = [(tmp_path / "a/set" / f).read_bytes() == (tmp_path / "b/set" / f).read_bytes() for f in files]
    assert all(same)
    assert (tmp_path / "a/set/mcub-answer.json").read_bytes() != (tmp_path / "c/set/mcub-answer.json").read_bytes()
    task = load_task(tmp_path / "a/set/mcub-2-image-audio.yaml")
    assert sorted(Counter(item.answer for item in task.items).values()) == [1, 1, 1, 2]


def test_evaluate_questions_by_an_endpoint(tmp_path) -> None:
    entities = read_captions(write_captions(tmp_path, modalities=("image", "audio")))
    good = {"question": "What is shared?", "answer": "nature", "distractors": ["city", "art", "sport"]}
    bad = ["I would rather not.", json.dumps(good | {"distractors": ["nature", "art", "sport"]}), '{"question": 3}']
    count = iter(range(100))

    def reply(prompt):
        assert prompt.count("image: ") == prompt.count("audio: ") == 1
        number = next(count)
        return bad[number] if number < 3 else f"Sure!\n```json\n{json.dumps(good)}\n```"

    settings = MakeSettings(sizes=(2,), count=4)
    with chat_server(reply) as (url, seen):
        for _ in range(2):  # the second run asks nothing
            replies = JudgeCache(Endpoint(url, "writer"), name="writer", path=tmp_path / "replies.jsonl")
            writer = EndpointWriter(replies, name="writer")
            (one,) = make_sets(entities, tmp_path / "set", embedding=("tfidf", tfidf), writer=writer, settings=settings)
            asked = len(seen)
            (tmp_path / "set/mcub-answer.json").unlink()
    assert (one.questions, one.dropped, asked) == (4, 3, 7)
    records = json.loads((tmp_path / "set/mcub-2-image-audio.json").read_text())
    assert len(records) == 4
    assert all("What is shared?" in r["conversations"][0]["value"] for r in records)


def test_evaluate_commonality_refuses_what_cannot_be_made(tmp_path) -> None:
    entities = read_captions(write_captions(tmp_path, modalities=("image", "audio")))
    with pytest.raises(RequestError, match="3, 4 modalities cannot be made of image, audio"):
        make_sets(entities, tmp_path / "set", embedding=("tfidf", tfidf), writer=TemplateWriter(entities))
    (tmp_path / "full").mkdir()
    made(tmp_path / "full", sizes=(4,))
    with pytest.raises(OutputError, match="already holds a set 'mcub'"):
        made(tmp_path / "full", sizes=(4,))
    unlike = [Entity(m, tmp_path, c) for m, c in (("image", "a dog"), ("audio", "violins"))]
    with pytest.raises(RequestError, match="No question could be made"):
        make_sets(
            unlike,
            tmp_path / "none",
            embedding=("tfidf", tfidf),
            writer=TemplateWriter(unlike),
            settings=MakeSettings(sizes=(2,)),
        )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"modality": "smell", "path": "a", "caption": "x"}, "'smell' is not a modality"),
        ({"modality": "image", "path": "gone.png", "caption": "x"}, "gone.png is missing"),
        ({"modality": "image", "path": "a.png"}, "entity 1: 'caption' is missing"),
    ],
)
def test_evaluate_bad_captions_are_named(tmp_path, row, message) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RequestError, match=message):
        read_captions(tmp_path / "c.jsonl")
    with pytest.raises(RequestError, match="There are no captions"):
        read_captions(tmp_path / "none.jsonl")


def test_evaluate_embeddings_by_name(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert embedder("auto") == ("tfidf", tfidf)
    with pytest.raises(RequestError, match="not installed"):
        embedder("sentence-transformers")
    with pytest.raises(RequestError, match="No embedding is called 'word2vec'"):
        embedder("word2vec")
    fake = types.ModuleType("sentence_transformers")
    seen = []

    class SentenceTransformer:
        def __init__(self, model):
            seen.append(model)

        def encode(self, texts, show_progress_bar):
            return np.array([[3.0, 4.0]] * len(texts))

    fake.SentenceTransformer = SentenceTransformer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    name, embed = embedder("sentence-transformers:mine")
    assert (name, seen) == ("sentence-transformers:mine", [])
    np.testing.assert_allclose(embed(["x"]), [[0.6, 0.8]])
    assert seen == ["mine"]
