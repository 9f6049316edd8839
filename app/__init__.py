"""The pages. A callback parses, calls jobs.service, renders; nothing else."""
