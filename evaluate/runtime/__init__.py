"""Shared basics of tasks and pretraining: errors, settings, devices, locks, processes, progress, LARS."""
