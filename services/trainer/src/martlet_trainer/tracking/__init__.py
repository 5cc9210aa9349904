"""Tells trackers (TensorBoard, W&B, MLflow) of trainings: ``python -m martlet_trainer track``, in an environment without torch."""
