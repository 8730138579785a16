from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.errors import Conflict, DatasetNotFound, InvalidValue
from service.store import datasets
from service.store.datasets import Answer, ImageToLabel, Label, LabelledImage
from service.store.retention import Retention
from service.store.store import Store
from tests.damage import write_column
from tests.feedback import take
from tests.records import make_row
from tests.shown import make_batch, make_dataset

HOUR = timedelta(hours=1)
ADA, BOB = "label/Ada", "label/Bob"


def _say(store: Store, shown: list[ImageToLabel], *labels: Label, who: str = ADA) -> None:
    answers = [Answer(one.id, label, 500) for one, label in zip(shown, labels, strict=True)]
    store.datasets.label("bars", answers, who)


def test_a_dataset_is_what_was_made(store: Store) -> None:
    made = make_dataset(store)
    found = store.datasets.read("bars")
    assert replace(found, created=made.created) == made
    assert [one.name for one in store.datasets.all()] == ["bars"]
    with pytest.raises(Conflict):
        make_dataset(store)
    with pytest.raises(DatasetNotFound):
        store.datasets.read("other")


def test_labels_are_counted_and_read_in_order(store: Store) -> None:
    make_dataset(store)
    first = make_batch(store, "one")
    _say(store, first, "benign", "malign", "unsure")
    counts = store.datasets.counts("bars")
    assert counts == {"benign": 1, "malign": 1, "unsure": 1, "elapsed_ms": 1500}
    labelled = store.datasets.labelled("bars")
    assert [one.label for one in labelled] == ["benign", "malign", "unsure"]
    assert labelled[0].image.seed == 2**53 - 1
    assert labelled[0].annotator == ADA


def test_the_last_label_of_an_image_counts(store: Store) -> None:
    make_dataset(store)
    shown = make_batch(store, "one", 1)
    _say(store, shown, "benign")
    _say(store, shown, "malign")
    assert store.datasets.counts("bars")["malign"] == 1
    assert store.datasets.counts("bars")["benign"] == 0


def test_nobody_labels_what_another_was_shown_and_nothing_is_half_kept(store: Store) -> None:
    make_dataset(store)
    mine, theirs = make_batch(store, "one", 1), make_batch(store, "two", 1, BOB)
    with pytest.raises(InvalidValue, match="two-0") as fault:
        _say(store, mine + theirs, "benign", "malign")
    assert fault.value.param == "labels.1.image_id"
    assert store.datasets.labelled("bars") == []
    with pytest.raises(InvalidValue):
        store.datasets.label("bars", [Answer("unknown", "benign", 1)], ADA)


def test_an_open_batch_is_its_persons_alone(store: Store) -> None:
    make_dataset(store)
    make_batch(store, "one")
    assert store.datasets.open_batch("bars", BOB, [], HOUR) == []
    found = store.datasets.open_batch("bars", ADA, [], HOUR)
    assert [one.position for one in found] == [0, 1, 2]
    assert store.datasets.open_batch("bars", ADA, ["one"], HOUR) == []


def test_a_labelled_batch_is_not_open_and_one_taken_back_is(store: Store) -> None:
    make_dataset(store)
    shown = make_batch(store, "one")
    _say(store, shown, "benign", "malign", "benign")
    assert store.datasets.open_batch("bars", ADA, [], HOUR) == []
    gone = store.datasets.withdraw("bars", ADA)
    assert [one.label for one in gone] == ["benign", "malign", "benign"]
    assert [one.image.id for one in gone] == [one.id for one in shown]
    assert store.datasets.labelled("bars") == []
    assert store.datasets.counts("bars")["elapsed_ms"] == 0
    assert len(store.datasets.open_batch("bars", ADA, [], HOUR)) == 3
    with pytest.raises(Conflict):
        store.datasets.withdraw("bars", ADA)


def test_undo_goes_back_page_by_page_and_leaves_others_alone(store: Store) -> None:
    make_dataset(store)
    for name, who in (("one", ADA), ("two", BOB), ("three", ADA)):
        _say(store, make_batch(store, name, 2, who), "malign", "benign", who=who)
    assert {one.image.batch for one in store.datasets.withdraw("bars", ADA)} == {"three"}
    assert {one.image.batch for one in store.datasets.withdraw("bars", ADA)} == {"one"}
    assert {one.image.batch for one in store.datasets.labelled("bars")} == {"two"}


def test_an_old_batch_is_not_shown_again(store: Store) -> None:
    make_dataset(store)
    make_batch(store, "one", created=datetime.now(UTC) - 2 * HOUR)
    assert store.datasets.open_batch("bars", ADA, [], HOUR) == []


def test_two_people_at_once_keep_every_label(store: Store) -> None:
    make_dataset(store)
    batches = {who: make_batch(store, who[-3:], 10, who) for who in (ADA, BOB)}

    def work(who: str) -> None:
        for shown in batches[who]:
            _say(store, [shown], "malign", who=who)

    threads = [threading.Thread(target=work, args=(who,)) for who in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.datasets.counts("bars")["malign"] == 20


def test_what_is_brought_twice_is_there_once(store: Store) -> None:
    make_dataset(store)
    (shown,) = make_batch(store, "one", 1)
    other = replace(shown, id="imp_1", batch="import-1", annotator="import:label/Eve")
    brought = LabelledImage(other, "malign", other.annotator, 700, datetime.now(UTC))
    assert store.datasets.bring([brought], ADA) == 1
    assert store.datasets.bring([brought], ADA) == 0
    (found,) = store.datasets.labelled("bars")
    assert (found.label, found.annotator, found.elapsed_ms) == ("malign", other.annotator, 700)


def test_an_image_that_is_labelled_here_is_not_brought_again(store: Store) -> None:
    make_dataset(store)
    one, two = make_batch(store, "one", 2)
    _say(store, [one, two], "malign", "malign")
    store.datasets.withdraw("bars", ADA)
    _say(store, [one], "malign")
    copies = [
        replace(image, id=f"imp_{n}", batch=f"import-{n}", annotator="import:label/Ada")
        for n, image in enumerate((one, two, two))
    ]
    brought = [LabelledImage(c, "benign", c.annotator, 700, datetime.now(UTC)) for c in copies]
    assert store.datasets.bring(brought, ADA) == 1, "what was taken back has no label"
    found = [(one.image.blob, one.label) for one in store.datasets.labelled("bars")]
    assert found == [(one.blob, "malign"), (two.blob, "benign")]


def test_many_labels_are_brought_while_others_write(store: Store) -> None:
    """In one transaction, nobody else could write to SQLite until the last label was there."""
    make_dataset(store)
    (shown, *_) = make_batch(store, "elsewhere", 1)
    image = replace(shown, batch="import", annotator="import:Eve")
    brought = [
        LabelledImage(
            replace(image, id=f"imp_{number}", blob=f"sha256:{number:064x}"),
            "malign",
            "import:Eve",
            0,
            image.created,
        )
        for number in range(2000)
    ]
    between: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        bringing = pool.submit(store.datasets.bring, brought, ADA)
        while not bringing.done():
            store.decisions.insert([make_row(len(between))])
            between.append(store.datasets.counts("bars")["malign"])
        assert bringing.result() == 2000
    assert len({count for count in between if 0 < count < 2000}) > 1, "others got their turn"
    assert store.datasets.bring(brought, ADA) == 0


def test_what_two_bring_at_once_is_there_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(store)
    (shown,) = make_batch(store, "one", 1)
    other = replace(shown, id="imp_1", batch="import-1", annotator="import:label/Eve")
    brought = LabelledImage(other, "malign", other.annotator, 700, datetime.now(UTC))
    both, left, real = threading.Barrier(2, timeout=10), iter(range(2)), datasets._labelled

    def looked(*arguments: Any) -> Any:
        if next(left, None) is not None:
            both.wait()  # each has seen that nothing is there
        return real(*arguments)

    monkeypatch.setattr(datasets, "_labelled", looked)
    with ThreadPoolExecutor(2) as pool:
        fresh = list(pool.map(lambda _: store.datasets.bring([brought], ADA), range(2)))
    assert sorted(fresh) == [0, 1]
    assert len(store.datasets.labelled("bars")) == 1


def test_a_certificates_image_comes_in_under_no_name(store: Store) -> None:
    make_dataset(store)
    make_dataset(store, "proof", "certificate")
    (proof,) = make_batch(store, "proof", 1, dataset="proof", strategy="certificate")
    (other,) = make_batch(store, "other", 1)
    copies = [
        replace(image, id=f"imp_{n}", batch=f"import-{n}", dataset="bars", strategy="random")
        for n, image in enumerate((other, proof))
    ]
    brought = [LabelledImage(c, "benign", c.annotator, 700, datetime.now(UTC)) for c in copies]
    with pytest.raises(Conflict, match="certificate"):
        store.datasets.bring(brought, ADA)
    assert store.datasets.labelled("bars") == []


def test_retention_spares_what_was_shown_again_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(store)
    now = datetime.now(UTC)
    old = make_batch(store, "old", 2, created=now - timedelta(days=9))
    retention = Retention(store, keep_images_days=100)
    retention._keep = timedelta(days=7)
    listed = store.datasets.purgeable

    def then_brought(*arguments: Any) -> list[str]:
        due = listed(*arguments)
        make_batch(store, "new", 1, blob=old[1].blob)
        return due

    monkeypatch.setattr(store.datasets, "purgeable", then_brought)
    assert retention.purge(now) == 1
    retention.close()
    assert not store.blobs.has(old[0].blob)
    assert store.blobs.has(old[1].blob)


def test_retention_spares_the_canary_of_a_reward(store: Store) -> None:
    """It is one of the images that were labelled, byte for byte, and so the same blob."""
    make_dataset(store)
    now = datetime.now(UTC)
    old = make_batch(store, "old", 3, created=now - timedelta(days=9))
    store.rewards.queue("rwd_1", "bars", None, {}, ADA)
    store.rewards.queue("rwd_2", "bars", None, {}, ADA)
    store.rewards.finish(take(store), {"canary": old[0].blob, "control": old[1].blob}, {})
    retention = Retention(store, keep_images_days=100)
    retention._keep = timedelta(days=7)
    assert retention.purge(now) == 1
    retention.close()
    assert [store.blobs.has(image.blob) for image in old] == [True, True, False]


@pytest.mark.parametrize("damaged", ["[]", '"x"', "7", '{"judge": 7}', '"{canary: %s, cut sho"'])
def test_a_damaged_reward_stops_no_purge(store: Store, damaged: str) -> None:
    """What can still be read of it is spared."""
    make_dataset(store)
    now = datetime.now(UTC)
    old = make_batch(store, "old", 2, created=now - timedelta(days=9))
    for number in (1, 2):
        store.rewards.queue(f"rwd_{number}", "bars", None, {}, ADA)
        store.rewards.finish(take(store), {"canary": old[0].blob}, {})
    text = damaged.replace("%s", old[1].blob)
    write_column(store, "rewards", "weights", text, id="rwd_2")
    retention = Retention(store, keep_images_days=100)
    retention._keep = timedelta(days=7)
    assert retention.purge(now) == (1 if text == damaged else 0)
    retention.close()
    assert store.blobs.has(old[0].blob)


def test_retention_deletes_old_images_and_keeps_labels_and_what_is_shared(store: Store) -> None:
    make_dataset(store)
    now = datetime.now(UTC)
    old = make_batch(store, "old", 2, created=now - timedelta(days=9))
    make_batch(store, "new", 1, blob=old[1].blob)
    _say(store, old, "malign", "benign")
    retention = Retention(store, keep_images_days=100)
    retention._keep = timedelta(days=7)
    assert retention.purge(now) == 1
    assert retention.purge(now) == 0
    retention.close()
    assert store.blobs.get(old[1].blob)
    with pytest.raises(Exception, match="not in the store"):
        store.blobs.get(old[0].blob)
    assert len(store.datasets.labelled("bars")) == 2


def test_an_image_that_cannot_be_deleted_keeps_no_other_and_is_tried_again(store: Store) -> None:
    make_dataset(store)
    old = datetime.now(UTC) - timedelta(days=200)
    blobs = sorted(one.blob for one in make_batch(store, "old", created=old))
    stuck = Path(store.blobs._path(blobs[0]))
    kept = stuck.read_bytes()
    stuck.unlink()
    (stuck / "inside").mkdir(parents=True)
    retention = Retention(store, keep_images_days=100)
    try:
        retention.purge(datetime.now(UTC))
        assert not store.blobs.has(blobs[1])
        assert not store.blobs.has(blobs[2])
        (stuck / "inside").rmdir()
        stuck.rmdir()
        stuck.write_bytes(kept)
        retention.purge(datetime.now(UTC))
        assert not store.blobs.has(blobs[0])
    finally:
        retention.close()
