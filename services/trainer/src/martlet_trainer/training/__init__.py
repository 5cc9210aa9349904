"""The machinery that recipes share: batches, attention without padding, the loop, checkpoints."""
