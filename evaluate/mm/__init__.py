"""What OpenMMLab's MMDetection and MMSegmentation lack for these protocols."""
