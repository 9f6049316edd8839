"""Everything that happens without a browser.

Declarations (data, methods, tasks, spec, memory, events) import neither torch nor storage. Children (training,
inference, tokens) are processes that import torch and the declarations, never storage. The parent side (executors,
worker, service) joins the two.
"""
