"""All that a pretraining imports, for a process that forks several (``evaluate.harness.fork_server``)."""

from pretrain import budget, export, log, methods, monitor, options, preview, signals  # noqa: F401
