from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from scipy import stats

from models.backbones.encoders import KEPT, ClassEncoder, PromptEncoder, load_encoder
from models.bundles.manifest import Inputs
from models.diffusion.condition import PROMPT_CHUNKS, Condition, ConditionError
from service.ports import DrawKey
from tests.engines import run_to_end, submit
from tests.parity import Made, ask
from tests.pipelines import TOKENS
from tests.plans import vary

LABELS = (0, 1, 2, 4)
CLASSES = Inputs(kind="class", class_names=("a", "b", "c", "d", "e"), null_class=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The pipeline of each kind, made once."""
    return cache(lambda kind: Made.make(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture
def encoder(made: Callable[[str], Made]) -> Callable[..., PromptEncoder]:
    """A fresh one, which has seen no prompt yet."""

    def load(kind: str, chunks: int = PROMPT_CHUNKS) -> PromptEncoder:
        bundle = made(kind).bundle
        found = load_encoder(
            bundle.folder / "backbone", bundle.manifest.backbone, prompt_chunks=chunks
        )
        assert isinstance(found, PromptEncoder)
        return found

    return load


@pytest.mark.parametrize("negative", ["", "owl"])
def test_a_prompt_is_encoded_as_diffusers_does(
    negative: str, made: Callable[[str], Made], encoder: Callable[..., PromptEncoder]
) -> None:
    found = encoder("sd").encode(Condition("a cat, a dog", negative), 0)
    wanted = made("sd").pipeline.encode_prompt(
        "a cat, a dog", "cpu", 1, True, negative_prompt=negative or None
    )
    for half, expected in zip((found.inputs, found.negative), wanted, strict=True):
        assert half.keys() == {"encoder_hidden_states"}
        torch.testing.assert_close(half["encoder_hidden_states"][None], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("negative", ["", "owl"])
def test_a_prompt_is_encoded_as_diffusers_does_for_xl(
    negative: str, made: Callable[[str], Made], encoder: Callable[..., PromptEncoder]
) -> None:
    found = encoder("sdxl").encode(Condition("a cat, a dog", negative), 0)
    pipeline = made("sdxl").pipeline
    hidden, hidden_away, pooled, pooled_away = pipeline.encode_prompt(
        "a cat, a dog", negative_prompt=negative or None, do_classifier_free_guidance=True
    )
    time_ids = pipeline._get_add_time_ids((32, 32), (0, 0), (32, 32), hidden.dtype, 32)
    for half, states, embeds in (
        (found.inputs, hidden, pooled),
        (found.negative, hidden_away, pooled_away),
    ):
        assert half.keys() == {"encoder_hidden_states", "text_embeds", "time_ids"}
        torch.testing.assert_close(half["encoder_hidden_states"][None], states, rtol=0, atol=1e-6)
        torch.testing.assert_close(half["text_embeds"][None], embeds, rtol=0, atol=1e-6)
        torch.testing.assert_close(half["time_ids"][None], time_ids)
    assert bool(negative) == bool(found.negative["text_embeds"].any())


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_prompt_that_is_too_long_is_refused_by_its_tokens(
    kind: str, field: str, encoder: Callable[..., PromptEncoder]
) -> None:
    fits = TOKENS - 2  # beside the marks of beginning and end
    it = encoder(kind, chunks=1)
    it.encode(replace(Condition(), **{field: "cat " * fits}), 0)
    for more in (1, 5):
        condition = replace(Condition(), **{field: "cat " * (fits + more)})
        with pytest.raises(ConditionError, match=f"has {TOKENS + more} tokens, {more} more than"):
            it.encode(condition, 0)
        with pytest.raises(ConditionError) as error:
            it.encode(condition, 0)
        assert error.value.field == field


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_prompt_of_too_many_chunks_is_refused_by_its_tokens(
    kind: str, field: str, encoder: Callable[..., PromptEncoder]
) -> None:
    it = encoder(kind, chunks=3)
    it.check(replace(Condition(), **{field: "cat " * 225}), 0)
    condition = replace(Condition(), **{field: "cat " * 226})
    for call in (it.check, it.encode):
        with pytest.raises(ConditionError, match="has 228 tokens, 1 more than the 227") as error:
            call(condition, 0)
        assert error.value.field == field
        assert "in 3 chunks of 75 " in str(error.value)


def _chunk(made: Made, part: str, ids: list[int]) -> Any:
    """What the text encoder says of these tokens, 75 or fewer, between marks and filled up."""
    words = getattr(made.pipeline, part.replace("text_encoder", "tokenizer"))
    begin, end = words.bos_token_id, words.eos_token_id
    row = [begin, *ids, end] + [words.pad_token_id] * (TOKENS - 2 - len(ids))
    with torch.no_grad():
        return getattr(made.pipeline, part)(torch.tensor([row]), output_hidden_states=True)


@pytest.mark.parametrize("cats", [74, 75, 76, 150, 151, 200])
def test_a_long_prompt_is_encoded_in_chunks_of_75_tokens(
    cats: int, made: Callable[[str], Made], encoder: Callable[..., PromptEncoder]
) -> None:
    """Each alone, between marks of its own, and one after the other."""
    prompt = "cat " * (cats - 1) + "dog"
    for kind, parts in (("sd", ["text_encoder"]), ("sdxl", ["text_encoder", "text_encoder_2"])):
        words = made(kind).pipeline.tokenizer
        cat, dog = words.convert_tokens_to_ids(["cat</w>", "dog</w>"])
        ids = [cat] * (cats - 1) + [dog]
        outputs = [
            [_chunk(made(kind), part, ids[start : start + 75]) for start in range(0, cats, 75)]
            for part in parts
        ]
        wanted = [
            torch.cat([one.hidden_states[-2] if kind == "sdxl" else one[0] for one in chunks], 1)
            for chunks in outputs
        ]
        found = encoder(kind).encode(Condition(prompt, "owl"), 0)
        states = found.inputs["encoder_hidden_states"]
        assert states.shape[0] == TOKENS * -(-cats // 75)
        torch.testing.assert_close(states[None], torch.cat(wanted, -1), rtol=0, atol=1e-6)
        # A negative one stays as long as it is, and the denoiser is told.
        assert found.negative["encoder_hidden_states"].shape[0] == TOKENS
        assert found.masks == {"encoder_hidden_states": "encoder_attention_mask"}
        if kind == "sdxl":
            pooled = outputs[1][0][0][0]
            torch.testing.assert_close(found.inputs["text_embeds"], pooled, rtol=0, atol=1e-6)


def test_where_two_tokenizers_need_other_numbers_of_chunks_the_shorter_gets_empty_ones(
    tmp_path: Path,
) -> None:
    """Nothing is cut: ComfyUI cuts the longer one."""
    made = Made.make("sdxl", tmp_path)
    backbone = made.bundle.folder / "backbone"
    # Without its merges the second has "cat" in three tokens.
    (backbone / "tokenizer_2" / "merges.txt").write_text("#version: 0.2\n")
    it = load_encoder(backbone, made.bundle.manifest.backbone)
    states = it.encode(Condition("cat " * 60), 0).inputs["encoder_hidden_states"]
    assert states.shape == (3 * TOKENS, 64)
    empty = _chunk(made, "text_encoder", []).hidden_states[-2][0]
    torch.testing.assert_close(states[2 * TOKENS :, :32], empty, rtol=0, atol=1e-6)


def test_long_prompts_are_kept_within_the_same_memory(
    encoder: Callable[..., PromptEncoder], calls: list[int]
) -> None:
    it = encoder("sd", chunks=KEPT // 2)
    first, *others = [Condition("cat " * (100 + i)) for i in range(3)]
    it.encode(Condition(), 0)
    calls.clear()
    for asked in (first, first, *others):
        it.encode(asked, 0)
    assert len(calls) == 3, "`first` was kept"
    it.encode(first, 0)
    assert len(calls) == 4, "of three the oldest was let go"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_what_a_tokenizer_cannot_read_is_refused_by_its_field(
    kind: str, field: str, encoder: Callable[..., PromptEncoder]
) -> None:
    it = encoder(kind)
    with pytest.raises(ConditionError, match="cannot be read by this model's tokenizer") as error:
        it.encode(replace(Condition(), **{field: "a\ud83d"}), 0)
    assert error.value.field == field
    it.encode(Condition("a cat"), 0)


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_both_encoders_of_xl_must_be_able_to_read_it(part: str, tmp_path: Path) -> None:
    made = Made.make("sdxl", tmp_path)
    backbone = made.bundle.folder / "backbone"
    path = backbone / part / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 20}))
    it = load_encoder(backbone, made.bundle.manifest.backbone, prompt_chunks=1)
    with pytest.raises(ConditionError, match="has 32 tokens, 12 more than the 20"):
        it.encode(Condition("cat " * 30), 0)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_tokenizer_may_not_promise_more_than_its_encoder_reads(kind: str, tmp_path: Path) -> None:
    made = Made.make(kind, tmp_path)
    backbone = made.bundle.folder / "backbone"
    path = backbone / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 512}))
    it = load_encoder(backbone, made.bundle.manifest.backbone, prompt_chunks=1)
    states = it.encode(Condition("cat"), 0).inputs["encoder_hidden_states"]
    assert len(states) == TOKENS
    with pytest.raises(ConditionError, match=f"1 more than the {TOKENS}"):
        it.encode(Condition("cat " * (TOKENS - 1)), 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The shapes that text encoders are called with."""
    found: list[int] = []
    forward = transformers.CLIPTextModel.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(transformers.CLIPTextModel, "forward", counted)
    return found


def test_a_prompt_is_encoded_once_for_all_its_draws(
    made: Callable[[str], Made], encoder: Callable[..., PromptEncoder], calls: list[int]
) -> None:
    it = made("sd")
    engine = replace(it, generator=replace(it.generator, encoder=encoder("sd"))).engine()
    calls.clear()  # those of the example
    plan = ask(2, prompt="a cat", negative_prompt="owl", guidance_scale=3.0)
    caller = submit(engine, plan, [DrawKey(0, seed, 0) for seed in range(4)])
    waiting = list(engine.scheduler.waiting)
    engine.check(waiting)
    assert not calls  # what is refused for load has cost no network
    engine.encode(waiting)
    assert len(calls) == 2
    # The other way round it is known already.
    other = submit(engine, vary(plan, condition=Condition("owl", "a cat")), [DrawKey(0, 9, 0)])
    engine.encode(list(engine.scheduler.waiting))
    engine.encoder._kept.cache_clear()  # type: ignore[attr-defined]
    run_to_end(engine)
    engine.decoder.close()
    assert (len(caller.results), len(other.results)) == (4, 1)
    assert len(calls) == 2  # none in the step loop, whatever others have asked meanwhile


def test_threads_that_encode_at_once_get_what_each_asked_for(
    encoder: Callable[..., PromptEncoder],
) -> None:
    """A tokenizer keeps settings from one call to the next."""
    it = encoder("sd", chunks=1)
    wrong: list[str] = []

    def encode(thread: int) -> None:
        for i in range(40):
            found = it.encode(Condition(f"cat {thread} {i}"), 0)
            if found.inputs["encoder_hidden_states"].shape[0] != TOKENS:
                wrong.append("of another length")
            try:
                it.encode(Condition("owl " * TOKENS + f"{thread} {i}"), 0)
                wrong.append("cut short")
            except ConditionError:
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=encode, args=(thread,)) for thread in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_class_is_drawn_uniformly_by_the_seed() -> None:
    it = ClassEncoder(CLASSES)
    asked = Condition(class_labels=LABELS)
    drawn = [int(it.encode(asked, seed).inputs["class_labels"]) for seed in range(4000)]
    assert set(drawn) == set(LABELS)
    counts = [drawn.count(label) for label in LABELS]
    assert 0.001 < stats.chisquare(counts).pvalue < 0.999
    assert drawn == [int(it.encode(asked, seed).inputs["class_labels"]) for seed in range(4000)]
    # Nor does one seed's class follow from that of the seed before.
    pairs = [[0] * len(LABELS) for _ in LABELS]
    for one, two in zip(drawn[::2], drawn[1::2], strict=True):
        pairs[LABELS.index(one)][LABELS.index(two)] += 1
    assert 0.001 < stats.chi2_contingency(pairs).pvalue < 0.999


def test_every_draw_of_a_seed_has_its_class(made: Callable[[str], Made]) -> None:
    it = made("class")
    it.denoised.clear()
    engine = it.engine(max_batch=8)
    plan = ask(1, class_labels=(0, 1, 2))
    keys = [DrawKey(index, seed, draw) for index, seed in enumerate(range(4)) for draw in (0, 7)]
    submit(engine, plan, keys)
    run_to_end(engine)
    ((_, inputs),) = it.denoised
    assert inputs["class_labels"].tolist() == [plan.condition.label(key.seed) for key in keys]
    assert len(set(inputs["class_labels"].tolist())) > 1


@pytest.mark.parametrize("label", [-1, 5, None])
def test_a_class_that_the_model_lacks_is_refused(label: int | None) -> None:
    with pytest.raises(ConditionError, match="must be 0 to 4") as error:
        ClassEncoder(CLASSES).encode(Condition(class_label=label), 0)
    assert error.value.field == "class_label"


def test_without_a_null_class_there_is_nothing_to_guide_away_from() -> None:
    it = ClassEncoder(CLASSES.model_copy(update={"null_class": None}))
    with pytest.raises(ConditionError, match="no null class") as error:
        it.encode(Condition(class_label=0, guidance_scale=1.5), 0)
    assert error.value.field == "guidance_scale"
    assert int(it.encode(Condition(class_label=4), 0).inputs["class_labels"]) == 4
    guided = ClassEncoder(CLASSES).encode(Condition(class_label=4, guidance_scale=1.5), 0)
    assert int(guided.negative["class_labels"]) == 5
