"""The pretrainer: one file a method, one training loop."""
