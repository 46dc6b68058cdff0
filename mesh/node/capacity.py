"""The devices of this machine and what is free on them.

CPU memory is the smaller of the cgroup's limit and the host's memory, less a share for everything that is not a model.
GPUs are read through NVML where there is a driver; without one there simply are none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
import pynvml

from mesh.core.errors import LoadFailed
from mesh.core.placement.ledger import Ledger
from mesh.core.types import Device, DeviceKind, ModelVersion
from mesh.wire.memory import host_memory_bytes

MODEL_SHARE = 0.8
"""Share of the memory that models may take: the process itself, requests in flight and the page cache need the rest."""


@dataclass(frozen=True, slots=True)
class Account:
    """A device with its ledger."""

    device: Device
    ledger: Ledger

    @property
    def name(self) -> str:
        """Return such as "cpu:0"."""
        return f"{self.device.kind.value}:{self.device.index}"

    def now(self) -> Device:
        """Return the device with its free bytes as of now: the ledger's, and never more than a GPU itself says."""
        free = self.ledger.free
        if self.device.kind is DeviceKind.GPU:
            free = min(free, _gpu_free(self.device.index))
        return replace(self.device, free_bytes=free)


def accounts(memory_bytes: int) -> list[Account]:
    """Return the devices of this machine, GPUs first. `memory_bytes` overrides the CPU's share; 0: measured."""
    total = memory_bytes or int(host_memory_bytes() * MODEL_SHARE)
    cpu = Device(DeviceKind.CPU, 0, f"{os.cpu_count()} cores", total, total)
    return [Account(device, Ledger(device.total_bytes)) for device in (*gpus(), cpu)]


def gpus() -> list[Device]:
    """Return the GPUs that NVML knows; none without NVIDIA's driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            found.append(Device(DeviceKind.GPU, index, str(name), int(memory.total), int(memory.free)))
        return found
    finally:
        pynvml.nvmlShutdown()


def _gpu_free(index: int) -> int:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).free)
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def used_bytes(device: Device) -> int:
    """Return what is used on `device` now: this process's resident memory, or what the GPU says."""
    if device.kind is DeviceKind.GPU:
        return device.total_bytes - _gpu_free(device.index)
    return int(psutil.Process().memory_info().rss)


def choose(model: ModelVersion, held: Sequence[Account], *, gpu_runs: bool) -> Account:
    """Return the device for `model`: what it asks for, or with "auto" the GPU with most free that can run it.

    `gpu_runs` says whether the model's runtime can use a GPU here. Raises `LoadFailed` when there is no such device.
    """
    gpus_here = [each for each in held if each.device.kind is DeviceKind.GPU]
    if model.device == "gpu" or (model.device == "auto" and gpu_runs and gpus_here):
        if not gpus_here:
            raise LoadFailed(f"failed to load '{model.name}', it asks for a gpu and this node has none")
        return max(gpus_here, key=lambda each: each.now().free_bytes)
    return next(each for each in held if each.device.kind is DeviceKind.CPU)
