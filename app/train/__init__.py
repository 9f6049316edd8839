"""What the Train page is made of: its widgets, what they show when a choice is made, and the way from them to a run.

`widgets` draws and reads; `choosing` says what follows from a choice; `starting` plans, checks and starts; `summary` is
the column beside. The events are wired in app/pages/train.py.
"""
