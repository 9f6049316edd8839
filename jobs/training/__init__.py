"""The training child: one run directory in, adapter and result out. Never opens the catalog."""
