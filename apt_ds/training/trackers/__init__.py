"""Experiment trackers: TensorBoard, Weights & Biases and MLflow behind one interface. The first rank alone has them."""

from apt_ds.training.trackers.collection import Trackers
from apt_ds.training.trackers.installed import check_installed
from apt_ds.training.trackers.tracker import TrackedRun, Tracker

__all__ = ["TrackedRun", "Tracker", "Trackers", "check_installed"]
