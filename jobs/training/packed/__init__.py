"""The packed loop: what most people run, as fast as the machine allows.

Rows stand one after another in one long sequence, so nothing is computed for padding; attention keeps them apart
(packs.py, attention.py). LoRA runs in the precision of the base, on adapters that lie in one flat buffer (flat.py,
leaves.py), and as part of the products it stands beside (grouping.py, groups.py, frozen.py, float8.py); where that
cannot be, each layer by itself (linear.py). Between the products a layer takes a few passes over memory, each one
kernel on a GPU (layers.py, pieces.py, kernels.py); those that finish a product add what LoRA adds to it on their way
(finishing.py, finishing_kernels.py). Logits are made a chunk at a time, and only where a token is trained (head.py).
Small passes are recorded and replayed (passes.py, sizes.py). Where memory is short layers are computed twice
(recompute.py), and what need not lie on the GPU does not (hosted.py), as jobs.memory.plan says. model.py puts it
together, loop.py takes the steps, of one adapter or of several at once (adapter.py).

It computes what jobs.training.plain computes, and tests/test_packed_loop.py holds it against that. What it takes on is
jobs.loops's to say; the rest goes the plain way.
"""
