"""Surgery on graphs: what is recognised, what it gives, and how exact.

Axes: B users, N items, D item dimension.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from exporter.export import write_bundle
from exporter.int8 import USER_STEPS, items_to_int8, quantize_rows, weights_to_int8
from exporter.models import Plan
from exporter.models.base import Recommender
from exporter.quantize import in_int8
from stream_worker.bundle import Bundle
from stream_worker.errors import BundleError
from stream_worker.inference import create_session
from tests.exporter.conftest import NOW, N, catalogue, serving
from tests.logs import random_log


def session_of(model: onnx.ModelProto, directory: Path) -> Any:
    path = directory / "probe.onnx"
    onnx.save(model, path)
    session = create_session(path)
    path.unlink()
    return session


class Cosine(Recommender):
    """Reads all item vectors in a way of its own."""

    name = "cosine"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.items_ND = torch.nn.Parameter(torch.randn(plan.items, plan.dim))
        self.map = torch.nn.Linear(plan.dim, plan.dim)

    def item_tensors(self) -> dict[str, torch.Tensor]:
        return {"item_vectors": self.items_ND, "item_bias": torch.zeros(len(self.items_ND))}

    def scores(self, feeds: Any, items: Any) -> torch.Tensor:
        history_BL = feeds["history_items"]
        known_BL1 = (history_BL >= 0).float()[..., None]
        user_BD = (F.embedding(history_BL.clamp(min=0), items["item_vectors"]) * known_BL1).sum(1)
        scores_BN: torch.Tensor = self.map(user_BD) @ torch.tanh(items["item_vectors"]).T + items["item_bias"]
        return scores_BN


def test_an_unknown_use_of_the_items_is_named(tmp_path: Path) -> None:
    path = write_bundle(tmp_path, Cosine(Plan(N, random_log(0, N))), catalogue(), serving(), NOW)
    with pytest.raises(BundleError, match=r"node '\w+' \(Tanh\) uses item_vectors .* Take --no-items-int8"):
        in_int8(Bundle(path), True, True)
    assert not in_int8(Bundle(path), False, True).stepped


@pytest.mark.parametrize(
    "product",
    [
        "t = Transpose<perm=[1,0]>(item_vectors) p = MatMul(u, t) s = Add(p, item_bias)",
        "t = Transpose<perm=[1,0]>(item_vectors) s = Gemm(u, t, item_bias)",
        "s = Gemm<transB=1>(u, item_vectors, item_bias)",
    ],
)
def test_each_way_to_score_all_items(product: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    user_BD, items_ND = (rng.standard_normal((rows, 8)).astype(np.float32) for rows in (5, 30))
    user_BD[2], items_ND[3] = 0, 0
    bias_N = rng.standard_normal(30).astype(np.float32)
    graph = f"g (float[B,8] u, float[N,8] item_vectors, float[N] item_bias) => (float[B,N] s) {{ {product} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> {graph}')
    assert items_to_int8(model, "here")
    onnx.checker.check_model(model)
    steps_ND, scale_N = quantize_rows(items_ND)
    inputs = {"u": user_BD, "item_vectors": steps_ND, "item_scales": scale_N, "item_bias": bias_N}
    (scores_BN,) = session_of(model, tmp_path).run(None, inputs)
    np.testing.assert_allclose(scores_BN, user_BD @ items_ND.T + bias_N, atol=0.3)
    np.testing.assert_allclose(scores_BN[2], bias_N)
    unit_BD = np.maximum(np.abs(user_BD).max(axis=1, keepdims=True), 1e-12) / USER_STEPS
    rounded_BD = np.rint(user_BD / unit_BD) * unit_BD
    vectors_ND = (steps_ND.astype(np.float32) - 128) * scale_N[:, None]
    np.testing.assert_allclose(scores_BN, rounded_BD @ vectors_ND.T + bias_N, rtol=1e-4, atol=1e-4)


def test_other_gemms_of_the_items_are_not_taken_for_scores() -> None:
    graph = (
        "g (float[B,8] u, float[N,8] item_vectors) => (float[B,N] s) { s = Gemm<transB=1,alpha=0.5>(u, item_vectors) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> {graph}')
    with pytest.raises(BundleError, match=r"here: node 's' \(Gemm\)"):
        items_to_int8(model, "here")


def test_products_cannot_saturate_where_the_cpu_adds_them_in_16_bits() -> None:
    assert 2 * 255 * USER_STEPS < 2**15


def test_a_weight_is_within_half_a_step_of_what_it_was(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((6, 9)) * 10 ** rng.uniform(-3, 3, 9)).astype(np.float32)  # channels of all sizes
    graph = "g (float[B,6] x) => (float[B,9] y) { y = MatMul(x, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> {graph}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    assert weights_to_int8(model) == 1
    (found,) = session_of(model, tmp_path).run(None, {"x": np.eye(6, dtype=np.float32)})
    assert (np.abs(found - weight) <= np.abs(weight).max(axis=0) / 127 * 0.501).all()
