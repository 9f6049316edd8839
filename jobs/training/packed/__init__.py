"""The packed loop: what most people run, as fast as the machine allows.

Rows stand one after another in one long sequence, so nothing is computed for padding; attention keeps them apart
(attention.py). LoRA runs in the precision of the base, on adapters that lie in one flat buffer (flat.py, linear.py).
Logits are made a chunk at a time, and only where a token is trained (head.py). On a GPU the layers are compiled once
and a step is replayed as a CUDA graph (model.py, graphs.py).

It computes what jobs.training.plain computes, and tests/test_packed_loop.py holds it against that. What it takes on is
jobs.loops's to say; the rest goes the plain way.
"""
