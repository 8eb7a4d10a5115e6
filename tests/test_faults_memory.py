"""Memory that really runs out, on a machine without a GPU: in whatever words that is said, the batch is halved."""

import mmap
import os
from pathlib import Path

import forked
import numpy as np
import pytest
import torch

from xray_opt.errors import OutOfMemory
from xray_opt.faults import device_faults, of_the_machine, out_of_memory

TESTS = Path(__file__).parent
#: More bytes than any machine has.
ABSURD = 2**60
#: A training of one epoch of 32 films at once, with so many MiB of address space as are given.
SHORT = """
import os, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_trainer import blobs, settings
from xray_opt.backbone import random_base
from xray_opt.cache import open_images
from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import prepare
from xray_opt.errors import XrayError
from xray_opt.trainer import Trainer

here, mebibytes = Path.cwd(), int(sys.argv[2])
data = DataConfig(root=str(blobs(here / "films", 24)), train_fraction=0.7, val_fraction=0.15, test_fraction=0.15)
images = open_images(prepare(data), 96, Workspace(here))
small = settings(image_size=96, training_epochs=1, training_micro_batch=1, training_batch_size=32)
base = random_base(0)
list(Trainer(small, images, base).epochs())  # what every process needs once is there
whole = Trainer(settings(image_size=96, training_epochs=1, training_batch_size=32), images, base, say=print)
used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
most = used + mebibytes * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    list(whole.epochs())
    print("trained with", whole.micro_batch)
except XrayError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(ABSURD, dtype=torch.uint8),
        lambda: np.empty(ABSURD, dtype=np.uint8),
        lambda: bytearray(ABSURD),
        lambda: mmap.mmap(-1, ABSURD),
    ],
    ids=["torch", "numpy", "Python", "the system"],
)
def test_whoever_refuses_memory_is_understood(ask):
    with pytest.raises(OutOfMemory, match="memory ran out") as caught, device_faults():
        ask()
    assert caught.value.reason == "oom"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 12 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_other_versions_and_systems_say_it_otherwise(error):
    assert out_of_memory(error)
    assert of_the_machine(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(2, "No such file"),
        ValueError("out of memory"),
        RuntimeError("shapes"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
    ],
)
def test_what_is_no_lack_of_memory_stays_what_it_is(error):
    assert not of_the_machine(error)
    with pytest.raises(type(error)) as caught, device_faults():
        raise error
    assert caught.value is error


@pytest.mark.slow
def test_a_batch_that_does_not_fit_into_the_machines_memory_is_halved(tmp_path):
    script = tmp_path / "short.py"
    script.write_text(SHORT)
    done = forked.run_script(script, str(TESTS), "240", cwd=tmp_path, environment=dict(os.environ))
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("memory of cpu ran out: going on with 16 films at a time"), done.stdout
    assert lines[-1].startswith("trained with "), done.stdout
    assert 1 <= int(lines[-1].split()[-1]) <= 16
