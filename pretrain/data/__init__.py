"""From image files to augmented views and their masks."""
