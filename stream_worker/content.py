"""What an item is, as numbers: words and attributes hashed into buckets, and vectors that come precomputed.

Trainer and worker share this file, so that an item which training never saw means the same to both. Hashing needs no
vocabulary and no download: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009, with
inverse document frequencies by bucket.

Axes: n items, F features = W buckets + V sizes of the given vectors, D item dimension.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from stream_worker.errors import DataError
from stream_worker.manifest import CONTENT, load_arrays

BUCKETS = 1024
_WORD = re.compile(r"\w+")
_SIGN = 1 << 63

Item = tuple[str, Mapping[str, Any]]  # title and attributes


@dataclass(frozen=True, eq=False)
class Featuriser:
    """Items to float32 [n, F]; `fit` makes one, `save` and `load` keep it in a bundle.

    Attributes:
        weight_W: float32, the inverse document frequency of each bucket.
        name: the attribute that holds an item's precomputed vector; "" if there is none.
        mean_V, scale_V: float32, of the precomputed vectors.
    """

    weight_W: NDArray[np.float32]
    name: str
    mean_V: NDArray[np.float32]
    scale_V: NDArray[np.float32]

    @classmethod
    def fit(cls, items: Sequence[Item], name: str = "", buckets: int = BUCKETS) -> Self:
        """Count in how many of the items each bucket is used, and scale their vectors.

        Raises:
            DataError: a precomputed vector is missing, or of another size than the first.
        """
        used_W = np.zeros(buckets)
        for title, attributes in items:
            used_W[list({token % buckets for token in _tokens(title, attributes, name)})] += 1
        weight_W = np.log((1 + len(items)) / (1 + used_W)) + 1
        given_nV = _given(items, name, None) if name else np.zeros((1, 0), np.float32)
        scale_V = np.maximum(given_nV.std(0), 1e-6) * max(1, given_nV.shape[1]) ** 0.5  # rows of length about 1
        return cls(weight_W.astype(np.float32), name, given_nV.mean(0), scale_V.astype(np.float32))

    @property
    def size(self) -> int:
        """F."""
        return len(self.weight_W) + len(self.mean_V)

    def __call__(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """The features of these items, float32 [n, F]; the hashed part of each has length 1, or is 0.

        Raises:
            DataError: a precomputed vector is missing or of another size.
        """
        buckets = len(self.weight_W)
        features_nW = np.zeros((len(items), buckets), np.float32)
        for row_W, (title, attributes) in zip(features_nW, items, strict=True):
            for token in _tokens(title, attributes, self.name):
                row_W[token % buckets] += 1 if token & _SIGN else -1
        features_nW *= self.weight_W
        features_nW /= np.maximum(np.linalg.norm(features_nW, axis=1, keepdims=True), 1e-6)
        if not self.name:
            return features_nW
        given_nV = _given(items, self.name, len(self.mean_V))
        return np.hstack([features_nW, (given_nV - self.mean_V) / self.scale_V])

    def save(self, path: Path) -> None:
        """Write it as an archive of plain arrays."""
        np.savez(path, allow_pickle=False, **{name: np.asarray(value) for name, value in asdict(self).items()})

    @classmethod
    def load(cls, bundle: Path) -> Self:
        """Read it from a bundle.

        Raises:
            BundleError: it is not whole.
        """
        arrays = load_arrays(bundle / CONTENT)
        return cls(arrays["weight_W"], str(arrays["name"]), arrays["mean_V"], arrays["scale_V"])


def text_of(title: str, attributes: Mapping[str, Any], without: str = "") -> str:
    """An item as text for an encoder: the title, then each attribute by name; "" if there is nothing to say.

    Args:
        without: an attribute to leave out.
    """
    said = [(name, ", ".join(value for value in values if value)) for name, values in _facts(attributes, without)]
    facts = [f"{name}: {values}" for name, values in sorted(said) if values]
    return ". ".join(part for part in (title.strip(), *facts) if part)


def _tokens(title: str, attributes: Mapping[str, Any], without: str) -> Iterator[int]:
    """Hashes of the title's words, and of each attribute with each of its values."""
    for word in _WORD.findall(title.lower()):
        yield xxhash.xxh3_64_intdigest(word.encode())
    for name, values in _facts(attributes, without):
        for value in values:
            yield xxhash.xxh3_64_intdigest(f"{name}={value}".lower().encode())


def _facts(attributes: Mapping[str, Any], without: str) -> Iterator[tuple[str, list[str]]]:
    """Names and values as words; a list with a float in it is a vector, which says nothing in words."""
    for name, value in attributes.items():
        values = [str(one) for one in (value if isinstance(value, list | tuple) else [value]) if one is not None]
        is_vector = isinstance(value, list | tuple) and any(isinstance(one, float) for one in value)
        if name != without and values and not is_vector:
            yield name, values


def _given(items: Sequence[Item], name: str, size: int | None) -> NDArray[np.float32]:
    vectors = []
    for number, (title, attributes) in enumerate(items, start=1):
        vector = attributes.get(name)
        if not isinstance(vector, list | tuple) or len(vector) != (size := len(vector) if size is None else size):
            raise DataError(
                f"items: number {number} ({title!r}) has no {name!r} of {size or 'some'} numbers. Every item needs one."
            )
        if not all(isinstance(one, int | float) and math.isfinite(one) for one in vector):
            raise DataError(f"items: number {number} ({title!r}) has a {name!r} with something that is no number.")
        vectors.append(vector)
    return np.array(vectors, np.float32).reshape(len(items), size or 0)
