"""A graph on a device, and the tensors that stay there. The one file that imports ONNX Runtime.

Axes: B users, N items.
"""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # on by default since 1.31; must be set before the import

import onnxruntime as ort

from stream_worker.batch import Feeds
from stream_worker.errors import BundleError

Device = Literal["cpu", "cuda"]
NO_CAPTURE = "-1"  # of a CUDA graph, in this run

log = structlog.get_logger(__name__)


class Bound(NamedTuple):
    """Buffers on the device for feeds and outputs of one set of shapes, and what ties them to the session."""

    binding: ort.IOBinding
    inputs: dict[str, ort.OrtValue]
    outputs: list[ort.OrtValue]
    options: ort.RunOptions


class Inference:
    """Runs a graph.

    On the CPU arrays go in as they are, without a copy, and a row of a resident tensor may be written between two runs.
    On CUDA the resident tensors are uploaded once; feeds and outputs have buffers there, a set for each combination of
    shapes, of which buckets keep the number small.

    Args:
        model: the graph.
        resident: the tensors that are the same in every run, by the names of their inputs.
        device: where to run; "auto" takes CUDA if it works and logs which one it took.
        threads: intra-op threads on the CPU.
        cuda_graphs: record the kernels of each set of shapes once and replay them.
        bound: use device buffers; None where they are of use, on CUDA.

    Raises:
        BundleError: the graph cannot be loaded, or the device is not usable.
    """

    def __init__(
        self,
        model: Path,
        resident: Mapping[str, NDArray[Any]],
        device: Literal["auto", "cpu", "cuda"] = "cpu",
        threads: int = 1,
        cuda_graphs: bool = False,
        bound: bool | None = None,
    ) -> None:
        self.device, self._session = _open_session(model, device, threads, cuda_graphs)
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._resident = resident
        self.feeds = frozenset(self._inputs) - resident.keys()  # what `run` wants
        self.is_bound = self.device == "cuda" if bound is None else bound  # then each new shape costs memory and time
        self._bounds: dict[tuple[tuple[int, ...], ...], Bound] = {}
        self._uploaded = {n: self._on_device(a) for n, a in resident.items()} if self.is_bound else {}

    def run(self, feeds: Feeds) -> Feeds:
        """The outputs by name; `feeds` holds at least the inputs that are not resident."""
        if self.is_bound:
            return self._run_bound(feeds)
        resident = self._resident
        inputs = {name: resident[name] if name in resident else feeds[name] for name in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def _run_bound(self, feeds: Feeds) -> Feeds:
        key = tuple(feeds[name].shape for name in self._inputs if name in self.feeds)
        bound = self._bounds.get(key)
        if bound is None:
            bound = self._bounds[key] = self._bind(feeds)
        for name, value in bound.inputs.items():
            value.update_inplace(np.ascontiguousarray(feeds[name]))
        self._session.run_with_iobinding(bound.binding, bound.options)
        return {name: value.numpy().copy() for name, value in zip(self._outputs, bound.outputs, strict=True)}

    def _bind(self, feeds: Feeds) -> Bound:
        """Buffers for these shapes; a first run tells those of the outputs."""
        binding, options = self._session.io_binding(), ort.RunOptions()
        inputs = {name: self._on_device(np.ascontiguousarray(feeds[name])) for name in sorted(self.feeds)}
        for name in self._inputs:
            binding.bind_ortvalue_input(name, self._uploaded[name] if name in self._uploaded else inputs[name])
        for name in self._outputs:
            binding.bind_output(name, self.device)
        options.add_run_config_entry("gpu_graph_id", NO_CAPTURE)
        self._session.run_with_iobinding(binding, options)
        outputs = [self._on_device(value.numpy()) for value in binding.get_outputs()]
        for name, value in zip(self._outputs, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(len(self._bounds) + 1))  # a graph of its own
        return Bound(binding, inputs, outputs, options)

    def _on_device(self, array: NDArray[Any]) -> ort.OrtValue:
        """A copy there: on the CPU `ortvalue_from_numpy` would be the array itself."""
        return ort.OrtValue.ortvalue_from_numpy(array.copy(), self.device, 0)


def create_session(
    model: Path, device: Device = "cpu", threads: int = 1, cuda_graphs: bool = False
) -> ort.InferenceSession:
    """An ONNX Runtime session on exactly this device, never silently on another one.

    Raises:
        BundleError: the model cannot be loaded, or CUDA was asked for and is not usable.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = device != "cpu"  # there any shape may come, and a plan of each would be kept
    options.log_severity_level = 4  # what it would log it also raises, and we report it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # int8 weights become float once, at load, not in every run; nor may a fusion round activations on their account.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    providers: list[Any] = ["CPUExecutionProvider"]
    name = providers[0]
    if device == "cuda":
        _require_cuda_driver()
        ort.preload_dlls()  # the CUDA libraries that the extra `gpu` brought as Python packages
        name = "CUDAExecutionProvider"
        providers = [(name, {"enable_cuda_graph": str(int(cuda_graphs))})]
        # Without this, nodes or the whole graph land on the CPU with no more than a log line.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # as above
        raise BundleError(f"bundle {model}: ONNX Runtime cannot load it on {device}: {error}") from error
    if session.get_providers()[0] != name:
        raise BundleError(f"device {device}: ONNX Runtime took {session.get_providers()} instead. {_CUDA_MEND}")
    return session


_CUDA_MEND = (
    "Install the extra `gpu`, or take the image of the target worker-gpu, on a machine with an NVIDIA driver; "
    "or choose --device cpu."
)


def _require_cuda_driver() -> None:
    # A file of its own, which the image `worker` leaves out.
    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if "CUDAExecutionProvider" not in ort.get_available_providers() or not provider.exists():
        raise BundleError(f"device cuda: this ONNX Runtime is without CUDA. {_CUDA_MEND}")
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BundleError(f"device cuda: no NVIDIA driver ({error}). {_CUDA_MEND}") from error
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        raise BundleError(f"device cuda: the NVIDIA driver sees no GPU. {_CUDA_MEND}")


def _open_session(model: Path, device: str, threads: int, cuda_graphs: bool) -> tuple[Device, ort.InferenceSession]:
    if device == "cuda":
        return "cuda", create_session(model, "cuda", threads, cuda_graphs)
    if device == "auto":
        try:
            return "cuda", create_session(model, "cuda", threads, cuda_graphs)
        except BundleError as error:
            log.info("device auto: taking the CPU", reason=str(error))
    return "cpu", create_session(model, "cpu", threads)
