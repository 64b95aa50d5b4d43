"""Items as numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_worker.content import BUCKETS, Featuriser, text_of
from stream_worker.errors import DataError

ITEMS: list[tuple[str, dict[str, Any]]] = [
    ("The red bicycle", {"kind": "bike", "colours": ["red", "black"]}),
    ("The blue bicycle", {"kind": "bike", "colours": ["blue"]}),
    ("The saucepan", {"kind": "pan", "year": 1999}),
    ("", {}),
]


def cosine(one: Any, other: Any) -> float:
    return float(one @ other / max(1e-9, np.linalg.norm(one) * np.linalg.norm(other)))


def test_like_items_have_like_features_and_rare_words_weigh_more() -> None:
    featurise = Featuriser.fit(ITEMS)
    red, blue, pan, nothing = featurise(ITEMS)
    assert featurise.size == BUCKETS == len(red)
    assert cosine(red, blue) > cosine(red, pan) > 0, "all share the word `the`"
    assert not nothing.any()
    assert np.linalg.norm(red) == pytest.approx(1)
    the, bicycle = featurise([("the", {}), ("bicycle", {})])
    assert cosine(red, bicycle) > cosine(red, the)


def test_an_item_means_the_same_wherever_it_is_met(tmp_path: Path) -> None:
    featurise = Featuriser.fit(ITEMS)
    featurise.save(tmp_path / "content.npz")
    again = Featuriser.load(tmp_path)
    fresh = ("THE red saucepan", {"year": 1999, "colours": ["Red"], "shelf": None})
    assert (again([fresh]) == featurise([fresh])).all()
    assert (again([*ITEMS, fresh])[-1] == again([fresh])[0]).all()
    assert cosine(again([fresh])[0], again(ITEMS)[2]) > 0.2


def test_precomputed_vectors_are_scaled_and_appended(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = [("x", {"image": (rng.normal(5, 3, 6)).tolist(), "kind": "k"}) for _ in range(500)]
    featurise = Featuriser.fit(items, "image", buckets=16)
    features = featurise(items)
    assert features.shape == (500, 22)
    assert np.linalg.norm(features[:, 16:], axis=1).mean() == pytest.approx(1, abs=0.1)
    assert np.abs(features[:, 16:].mean(0)).max() < 1e-4
    featurise.save(tmp_path / "content.npz")
    assert (Featuriser.load(tmp_path)(items) == features).all()


@pytest.mark.parametrize("image", [None, [1.0], "1 2 3", [[1.0, 2.0]]])
def test_an_item_without_its_vector_is_named(image: Any) -> None:
    items: list[tuple[str, dict[str, Any]]] = [("first", {"image": [1.0, 2.0]}), ("second", {"image": image})]
    with pytest.raises(
        DataError,
        match=r"number 2 \('second'\) has (no|a) 'image'",
    ):
        Featuriser.fit(items, "image")


def test_the_text_of_an_item_is_the_same_whatever_the_order_and_leaves_vectors_out() -> None:
    attributes = {"year": 1999, "colours": ["red", None, "black"], "shelf": None, "note": "", "image": [0.5, 1.0]}
    text = "The red bicycle. colours: red, black. year: 1999"
    assert text_of(" The red bicycle ", attributes) == text
    assert text_of("The red bicycle", dict(reversed(attributes.items()))) == text
    assert text_of("", {"year": 1999, "kind": "bike"}, without="year") == "kind: bike"
    assert text_of(" ", {"shelf": None, "image": [0.5, 1.0]}) == ""


def test_a_vector_that_is_not_the_one_asked_for_says_nothing() -> None:
    plain = ("The saucepan", {"kind": "pan"})
    featurise = Featuriser.fit(ITEMS)
    assert (featurise([plain]) == featurise([("The saucepan", {"kind": "pan", "image": [0.5, 1.0]})])).all()
