"""Surgery on graphs: weights in 8 bits."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from exporter.low_precision import weights_to_int8
from stream_worker.inference import create_session


def session_of(model: onnx.ModelProto, directory: Path) -> Any:
    path = directory / "probe.onnx"
    onnx.save(model, path)
    session = create_session(path)
    path.unlink()
    return session


def test_a_weight_is_within_half_a_step_of_what_it_was(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((6, 9)) * 10 ** rng.uniform(-3, 3, 9)).astype(np.float32)  # channels of all sizes
    graph = "g (float[B,6] x) => (float[B,9] y) { y = MatMul(x, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> {graph}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    assert weights_to_int8(model) == 1
    (found,) = session_of(model, tmp_path).run(None, {"x": np.eye(6, dtype=np.float32)})
    assert (np.abs(found - weight) <= np.abs(weight).max(axis=0) / 127 * 0.501).all()
