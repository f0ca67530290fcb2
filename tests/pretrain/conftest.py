"""What the tests by faults share: images, and what a run without any fault ends with."""

import functools

import pytest

from tests.pretrain.runs import Run, content, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("faults") / "images")


@pytest.fixture(scope="module")
def unbroken(images):
    """What a run without any fault ends with, by its processes and options."""

    @functools.cache
    def of(processes: int = 1, *options: str):
        out = images.parent / f"unbroken {processes} {' '.join(options)}"
        assert Run(images, out, *options, processes=processes).statuses() == [0] * processes
        return content(out)

    return of
