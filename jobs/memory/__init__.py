"""The memory a run will need at its peak, said before Start from sizes alone: estimate.py sums it up; packed.py and
plain.py count what each training loop keeps for the backward pass, in the terms of kept.py."""
