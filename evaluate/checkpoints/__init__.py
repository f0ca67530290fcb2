"""From a checkpoint of any known format to a certified encoder, and back out."""
