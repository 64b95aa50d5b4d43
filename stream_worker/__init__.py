"""Clicks in, fresh recommendations out.

One step is eight verbs, and each has its place:

poll, publish     transports/   Kafka, memory or files behind one seam
decode, encode    messages.py   the wire
fold              fold.py, state.py   one event into one user's history
batch             batch.py      touched users to arrays
infer             bundle.py, inference.py   one ONNX graph
checkpoint        checkpoint.py what may be committed

`pipeline.py` is the step; `worker.py` is its life; `cli.py` wires them.
"""

__version__ = "0.1.0"
