"""One thread a test process: two threads beside a busy neighbour are many times slower."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.gpu.pretended.build import CannotBuild, build  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pretended(tmp_path_factory):
    """The variables with which a process finds one pretended H100."""
    try:
        return {**os.environ, **build(tmp_path_factory.mktemp("pretended"))}
    except CannotBuild as error:
        pytest.skip(str(error))
