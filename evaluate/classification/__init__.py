"""What the ImageNet tasks share: set-up, training loops, frozen features, heads."""
