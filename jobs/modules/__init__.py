"""What Graft trains in torch itself because PEFT has none of it: bottleneck adapters, and a model's own weights.

Attaching, saving, loading, switching on a resident base. What a person can choose of it is declared in jobs.methods.
"""
