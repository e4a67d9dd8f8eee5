"""Stands for torchvision, which does not load beside every build of torch: what LeRobot 0.4.4 calls of it to read a
data set with its `pyav` backend."""

from torchvision import io, transforms

__all__ = ["io", "set_video_backend", "transforms"]


def set_video_backend(name: str) -> None:
    assert name == "pyav"
