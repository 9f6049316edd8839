"""The engine that answers: one process a base model, base weights once, adapters by name, one batch for all."""
